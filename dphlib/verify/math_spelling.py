r"""One spelling for what can be written in many: Unicode, fonts, dress, powers of ten, mixed numbers, bases.

`tidy` brings the text of a gold or an answer into the LaTeX that the other rules and the parser read. It changes how
something is written, never what it says, so it needs no algebra: pure rules on text, each linear or, on the 2,000
characters of a box at most, quadratic.

1. Unicode becomes LaTeX (`½`, `x²`, `2√3`, `≤`, `−`, mathematical letters); invisible characters go.
2. Fonts, sizes, colours, Markdown stars, delimiters and outer braces go; within a text font only words stay text
   (`\text{15 miles}` is `15\text{ miles}`); upright `e` and `i` are the constants.
3. A command has one name (`\dfrac`, `\leqslant`, `\varnothing`, `\lvert`) and its arguments have braces (`\frac12`).
4. `4.5e33`, `4.5*10^33` are `4.5 \times 10^{33}`; `1 1/4` is `1\frac{1}{4}`; `33.\overline{3}` is `\frac{100}{3}`;
   `(2516)_{\text{eight}}` and `2516 \text{ (base 8)}` are `2516_{8}`; `np.arcsin(x)` is `\arcsin(x)`.

What it does not do: read decimal commas, or digits other than 0 to 9 and their mathematical and full-width forms.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from functools import cache, lru_cache

# --- Unicode ------------------------------------------------------------------------------------------

# Drawn as nothing. Marks that turn the direction of writing stay: they change what is read.
_INVISIBLE = (0xAD, 0x200B, 0x200C, 0x200D, 0x200E, *range(0x2060, 0x2065), 0xFEFF)
_COMMANDS = r"""
× times; · cdot; ⋅ cdot; ∙ cdot; • cdot; ÷ div; ± pm; ∓ mp; ∞ infty; ° degree; ∘ circ; ∪ cup; ∩ cap; ∖ setminus; ∈ in;
∉ notin; ⊂ subset; ⊆ subseteq; ≤ le; ⩽ le; ≦ le; ≥ ge; ⩾ ge; ≧ ge; ≠ neq; ≈ approx; ≡ equiv; ∠ angle; ∅ emptyset;
∧ land; ∨ lor; → to; ∫ int; ∑ sum; ∏ prod; ∂ partial; ∇ nabla; ⟨ langle; ⟩ rangle; ⌊ lfloor; ⌋ rfloor; ⌈ lceil;
⌉ rceil; … ldots; ⋯ cdots; ℓ ell; ⊥ perp; ∥ parallel; △ triangle
"""
_GREEK = """
α alpha; β beta; γ gamma; δ delta; ε varepsilon; ϵ epsilon; ζ zeta; η eta; θ theta; ϑ vartheta; ι iota; κ kappa;
λ lambda; μ mu; µ mu; ν nu; ξ xi; π pi; ρ rho; σ sigma; τ tau; υ upsilon; φ varphi; ϕ phi; χ chi; ψ psi; ω omega;
Γ Gamma; Δ Delta; Θ Theta; Λ Lambda; Ξ Xi; Π Pi; Σ Sigma; Φ Phi; Ψ Psi; Ω Omega
"""
_PLAIN = dict.fromkeys("\xa0\u2002\u2003\u2009\u202f", " ") | {"∣": "|", "⁄": "/", "∕": "/", "′": "'"}
_PLAIN |= dict.fromkeys("−–—‐‑‒", "-") | dict.fromkeys("∗＊⁎", "*")
_PLAIN |= {"ℝ": r"\mathbb{R}", "ℂ": r"\mathbb{C}", "ℤ": r"\mathbb{Z}", "ℚ": r"\mathbb{Q}", "ℕ": r"\mathbb{N}"}
_CHARACTERS = dict.fromkeys(_INVISIBLE) | str.maketrans(
    {mark: f"\\{name} " for mark, name in (pair.split() for pair in f"{_COMMANDS};{_GREEK}".split(";"))} | _PLAIN
)
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣʸᵃᵇᵏᵐᵗ", "0123456789+-=()nixyabkmt")
_SUBSCRIPT = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙᵢₓₐₖₘⱼ", "0123456789+-=()nixakmj")
_RAISED, _LOWERED = ("[" + "".join(map(chr, table)) + "]+" for table in (_SUPERSCRIPT, _SUBSCRIPT))
_COMPATIBLE = re.compile("[¼½¾\u2150-\u215e！-～\U0001d400-\U0001d7ff]")
_ROOT_SIGN = re.compile(r"([√∛∜])\s*(?=(\(|\{)?(\d+(?:\.\d+)?|\\[A-Za-z]+|[A-Za-z])?)")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}


def _ascii(text: str) -> str:
    """Rule 1."""
    text = _COMPATIBLE.sub(lambda match: _compatible(match[0]), text)
    text = re.sub(_RAISED, lambda run: "^{" + run[0].translate(_SUPERSCRIPT) + "}", text)
    text = re.sub(_LOWERED, lambda run: "_{" + run[0].translate(_SUBSCRIPT) + "}", text)
    return _roots(text.translate(_CHARACTERS))


@cache
def _compatible(character: str) -> str:
    """A vulgar fraction as LaTeX, a mathematical or full-width character as the plain one."""
    plain = unicodedata.normalize("NFKC", character)
    above, slash, below = plain.partition("\u2044")
    return rf"\frac{{{above}}}{{{below}}}" if slash else plain


def _roots(text: str) -> str:
    while match := _ROOT_SIGN.search(text):
        start = match.end()
        if match[2]:
            end = _closing(text, start)
            inside, rest = text[start + 1 : end], text[end + 1 :]
        else:
            end = start + len(match[3] or "")
            inside, rest = text[start:end], text[end:]
        text = text[: match.start()] + _ROOTS[match[1]] + "{" + inside + "}" + rest
    return text


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` is closed; the end of the text if it is not."""
    opening, depth = text[start], 0
    closing = {"(": ")", "{": "}", "[": "]"}[opening]
    for i in range(start, len(text)):
        if text[i - 1 : i] != "\\" or opening == "(":
            depth += (text[i] == opening) - (text[i] == closing)
        if depth == 0:
            return i
    return len(text)


# --- Dress --------------------------------------------------------------------------------------------

_WORD_FONT = (
    r"\\(?:text(?:bf|it|rm|normal|sf|tt|up)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|boldsymbol|bm|bold|operatorname)"
)
_ESCAPED = re.compile(r"\\\\(?=[A-Za-z])")  # a command with a backslash too many
_DELIMITERS = re.compile(r"(?<!\\)(?:\$|\\[()\[\]])")
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\{,\}|,?\\[,!;: ]|,?~)\s*\d{3})+(?!\d)")
_END = re.compile(rf"(?:(?<!\.)\.|\\\\|{_WORD_FONT}\s*\{{[\s.]*\}}|\s)+$")
_PREFIX = re.compile(
    r"^(?:(?:\\text\{)?\s*(?:the )?(?:final )?(?:solution|answer)s? (?:is|are)\s*\}?\s*:?\s*|\\approx\s*)", re.I
)
_COLOUR = re.compile(r"\\(?:text)?color\s*\{[a-z]+\}(?:\s*\{([^{}]*)\})?")
_STARS = re.compile(r"(\*{1,3}|`{1,3})(?=[^*`\s])([^*`]*[^*`\s])\1")
_PERCENT = re.compile(
    r"\s*(?:\\text\s*\{\s*(?:percentage|percent|per cent|pct)\s*\}"
    r"|(?<=[\d}\s])(?:percentage|percent|per cent|pct)(?![A-Za-z])|(?<=\d)\s*(?<!\\)%(?=\s*(?:$|[,;)\]}])))"
)
_SWITCHES = re.compile(
    r"\\(?:(?:(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?)|(?:(?:display|text|script)style|tiny|scriptsize|small|"
    r"footnotesize|normalsize|[lL]arge|LARGE|[hH]uge|bf|it|rm|sf|tt|bfseries|boldmath|limits|nolimits)(?![A-Za-z]))\s*"
)
_BOX_FONT = r"\\(?:underline|ensuremath|smash|emph)"
_FONT_GROUP = re.compile(rf"(?:{_WORD_FONT}|{_BOX_FONT})\s*\{{")
_FONT_LETTER = re.compile(rf"{_WORD_FONT}(?:\s+(?=[A-Za-z](?![A-Za-z]))|\s*(?=\d))")
_WORDS_IN_TEXT = re.compile(r"\s*[A-Za-z][A-Za-z'.-]*(?:[\s.]+[A-Za-z][A-Za-z'.-]*)*\s*")
_SYMBOL = re.compile(
    r"\\(?:mathrm|mathit|operatorname|text|textrm|textit|mathnormal)\s*\{\s*([ei])\s*\}|\\(i)math(?![A-Za-z])"
)
_ALIKE = r"""
leq \le; leqslant \le; leqq \le; geq \ge; geqslant \ge; geqq \ge; ne \neq; lt <; gt >; varnothing \emptyset; vert |;
oslash \emptyset; lvert |; rvert |; lbrace \{; rbrace \}; lbrack [; rbrack ]; dfrac \frac; tfrac \frac; cfrac \frac;
infin \infty; ast \cdot; cdotp \cdot; lg \log_{10}; backslash \setminus; vee \lor; wedge \land; degree \circ;
R \mathbb{R}; mid |; reals \mathbb{R}; dots \ldots; dotsc \ldots; varphi \phi; varepsilon \epsilon; vartheta \theta
"""
_SAME = dict(pair.split() for pair in _ALIKE.split(";"))
_COMMAND = re.compile(r"\\([A-Za-z]+)(\s?)")
_SPACE = re.compile(r"\\(?:q?quad|(?:thin|en|med|thick)space)")
_SPACING = re.compile(r"\\[,;:>~]|~|(?<!\\)\\\s|\s+")
_FUNCTION = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|csc|ln|log|exp|sqrt"
_FUNCTIONS = re.compile(
    rf"(?:\\operatorname\s*\{{\s*({_FUNCTION}|sec)\s*\}}|\\(?:mathrm|text)\s*\{{\s*({_FUNCTION})\s*\}}"
    rf"|(?<![A-Za-z\\])(?:(?:np|numpy|math)\.)?({_FUNCTION}))(?=\s*[({{\\\d^_]|\s+[A-Za-z](?![A-Za-z]))"
    r"|(?<![A-Za-z\\])(?:(?:np|numpy|math)\.)?(pi)(?![A-Za-z])"
)


def _undress(text: str) -> str:
    """Rule 2, but for the outer braces."""
    text = " ".join(text.split())
    if "\\begin" not in text:
        text = _ESCAPED.sub(r"\\", text)
    stars = _STARS.fullmatch(text)
    text = _COLOUR.sub(r"\1", _DELIMITERS.sub(" ", stars[2] if stars else text))
    text = _FONT_LETTER.sub(" ", _SWITCHES.sub("", text))
    return _fonts(_SYMBOL.sub(lambda match: f" {match[1] or match[2]} ", text))


def _fonts(text: str) -> str:
    r"""Fonts taken off all but words, so that `\text{...}` marks words only.

    >>> print(_fonts(r"\mathbf{\frac{1}{2}}\text{ or 3 cm}"), _fonts(r"\mathrm{cm}"))
    \frac{1}{2}\text{ or }3\text{ cm} \mathrm{cm}
    """
    parts: list[str] = []
    at = 0
    for match in _FONT_GROUP.finditer(text):
        if match.start() < at:
            continue
        end = _closing(text, match.end() - 1)
        inside, parts = text[match.end() : end], [*parts, text[at : match.start()]]
        at = end + 1
        if "\\" in inside or not re.match(_WORD_FONT, match[0]):
            parts.append(_fonts(inside))
        elif re.search(r"[\d^=+]", inside):
            parts.append(_WORDS_IN_TEXT.sub(_as_text, inside))
        else:
            parts.append(match[0] + inside + "}")
    return "".join(parts) + text[at:]


def _as_text(words: re.Match[str]) -> str:
    return words[0] if len(words[0].strip()) == 1 else f"\\text{{{words[0]}}}"


def _named(match: re.Match[str]) -> str:
    """Rule 3: the one name of a command."""
    name = _SAME.get(match[1])
    return match[0] if name is None else name + (" " if name[-1:].isalpha() else match[2])


# --- Arguments in braces ------------------------------------------------------------------------------

_TAKES = re.compile(r"\\(frac|binom|sqrt)(?![A-Za-z])|(?<!\\)[\^_]")
_WITH_GROUPS = re.compile(rf"\\(?:frac|binom|sqrt|overline|bar|hat|vec|mathbb|mathcal)|{_WORD_FONT}")
_TAKEN = re.compile(r"[+-]?\d+|[+-]?(?:\\[A-Za-z]+|[A-Za-z*'])|.")


def _braced(text: str) -> str:
    r"""Rule 3: braces round what `\frac`, `\binom`, `\sqrt`, `^` and `_` take, the innermost first.

    >>> print(_braced(r"\frac12x^\frac{1}{2}\sqrt\pi + x^10"))
    \frac{1}{2}x^{\frac{1}{2}}\sqrt{\pi} + x^{10}
    """
    for match in reversed(list(_TAKES.finditer(text))):
        at, name, taken = match.end(), match[1], ""
        if name == "sqrt" and (root := re.compile(r"\s*\[[^\[\]]*\]").match(text, at)):
            taken, at = root[0].strip(), root.end()
        for _ in range(2 if name in ("frac", "binom") else 1):
            inside, at = _argument(text, at, digits=name is None, round_brackets=name in (None, "sqrt"))
            if inside in ("\\circ", "\\prime", "'", "*", ""):
                taken += inside
            else:
                taken += f"{{{inside}}}"
        text = text[: match.start()] + match[0] + taken + text[at:]
    return text


def _argument(text: str, at: int, *, digits: bool, round_brackets: bool) -> tuple[str, int]:
    """What a command at the place takes, without its braces, and where it ends."""
    while text[at : at + 1] == " ":
        at += 1
    if text[at : at + 1] == "{" or (round_brackets and text[at : at + 1] == "("):
        end = _closing(text, at)
        return text[at + 1 : end].strip(), end + 1
    match = _TAKEN.match(text, at)
    if match is None:
        return "", at
    if not digits and not match[0].startswith("\\"):
        return text[at], at + 1
    end = match.end()
    if _WITH_GROUPS.fullmatch(match[0].lstrip("+-")):
        while text[end : end + 1] in ("{", "["):
            end = _closing(text, end) + 1
    return text[at:end], end


# --- Numbers ------------------------------------------------------------------------------------------

_E_NOTATION = re.compile(r"(?<![\w.\\])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?)(\d{1,4})(?![\w.])", re.ASCII)
_TIMES_TEN = re.compile(r"(?<=\d)\s*[xX*]\s*(?=10\s*\^)")
_STAR = re.compile(r"(?<![\^{*])\*(?!\*)")
_MIXED = re.compile(r"((?:^|[-+=<>(,\[{:;])\s*\d+) +(\d+) ?/ ?(\d+)(?![\d.\w])", re.ASCII)
_AND_OR = re.compile(
    rf",?\s*\\text\s*\{{\s*,?\s*(and|or)\s*\}}|{_WORD_FONT}\s*\{{[^{{}}]*\}}"
    r"|,?\s*(?:(?<![A-Za-z\\])(and|or)(?![A-Za-z])|\\(land|lor)(?![A-Za-z]))"
)
_EMPTY = re.compile(r"\\\{\s*\\\}")
_ORDER = {"<=": r"\le ", ">=": r"\ge ", "!=": r"\neq "}
_POINT = re.compile(r"(?<=\d)\.(?=\s*/)")
_REPEATING = re.compile(r"(?<![\w.])(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{(\d+)\}|(\d))", re.ASCII)
_DIGITS = r"(?:\((\d[\dA-F]*)\)|(?<![\w\\.{])(\d[\dA-F]*))"
_SUBSCRIPTED = re.compile(_DIGITS + r" ?_\{((?:[^{}]|\{[^{}]*\})*)\}")
_IN_BASE = re.compile(_DIGITS + r"[\s(]*(?:\\text\s*\{)?[\s(]*(?:in )?base[\s{}-]*(\w+)[\s)}]*$", re.ASCII)
_BASES = dict(zip("two three four five six seven eight nine ten eleven twelve".split(), range(2, 13), strict=True))
_BASES |= {"sixteen": 16, "binary": 2, "octal": 8, "hexadecimal": 16}


def _numbers(text: str) -> str:
    """Rule 4."""
    text = text.replace("+/-", r"\pm ")
    text = _TIMES_TEN.sub(r" \\times ", text)
    text = _E_NOTATION.sub(lambda match: rf"{match[1]} \times 10^{{{int(match[2] + match[3])}}}", text)
    text = _STAR.sub(r"\\cdot ", text)
    text = re.sub("[<>!]=", lambda match: _ORDER[match[0]], text)
    text = _AND_OR.sub(_and_or, text)
    text = _REPEATING.sub(_repeating, _MIXED.sub(r"\1\\frac{\2}{\3}", _POINT.sub("", text)))
    text = _EMPTY.sub(r"\\emptyset ", text)
    return _IN_BASE.sub(_in_base, _SUBSCRIPTED.sub(_in_base, text))


def _and_or(match: re.Match[str]) -> str:
    word = match[match.lastindex] if match.lastindex else ""
    return match[0] if not word else r" \lor " if word.endswith("or") else r" \land "


def _repeating(match: re.Match[str]) -> str:
    r"""
    >>> print(_numbers(r"33.\overline{3}"), _numbers(r"0.1\overline{6}"))
    \frac{100}{3} \frac{1}{6}
    """
    whole, fixed, period = match[1], match[2], match[3] or match[4]
    shift = 10 ** len(fixed)
    value = Fraction(int(whole + fixed + period) - int((whole + fixed) or 0), (10 ** len(period) - 1) * shift)
    return str(value) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _in_base(match: re.Match[str]) -> str:
    r"""
    >>> print(_numbers(r"(2516)_{\text{eight}}"), _numbers(r"2516 (\text{base }8)"), _numbers("x_{1}"))
    2516_{8} 2516_{8} x_{1}
    """
    base = re.sub(r"\\[a-z]+|base|[^\da-z]", "", match[3].lower())
    number = _BASES.get(base, int(base) if base.isdecimal() and len(base) < 3 else 0)
    return f"{match[1] or match[2]}_{{{number}}}" if number > 1 else match[0]


# --- All ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=10_000)
def tidy(text: str) -> str:
    r"""`text` in the spelling that the other rules and the parser read; see the module.

    >>> print(tidy(r"\( 10{,}000 \)."), tidy("−5½"), tidy("**4.5e33**"), tidy(r"\text{15 miles}"))
    10000 -5\frac{1}{2} 4.5 \times 10^{33} 15\text{ miles}
    """
    text = _GROUPED.sub(lambda group: re.sub(r"\D", "", group[0]), _undress(_ascii(text)))
    text = _FUNCTIONS.sub(_function, _COMMAND.sub(_named, _SPACE.sub(" ", _PERCENT.sub(r"\\%", text))))
    text = _braced(_SPACING.sub(" ", text.replace(r"\!", "").replace("**", "^")))
    text = _END.sub("", " ".join(_numbers(text).split()))
    text = _PREFIX.sub("", text)
    while text.startswith("{") and _closing(text, 0) == len(text) - 1:
        text = _END.sub("", text[1:-1]).strip()
    return text


def _function(match: re.Match[str]) -> str:
    name = "ln" if re.search(r"(?:np|numpy|math)\.log", match[0]) else match[match.lastindex or 0]
    return f"\\{name} "
