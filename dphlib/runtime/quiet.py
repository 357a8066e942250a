"""What libraries print of themselves and no reader of ours needs: bars of loading and saving, advice on widgets."""

from __future__ import annotations

import os
import sys
import warnings

NOISE = (
    "IProgress not found",  # tqdm's advice to install a widget
    r".?torch\.jit\.",  # deprecated, and used by libraries alone
)
"""How the warnings begin that are not shown."""
_BARS = "HF_HUB_DISABLE_PROGRESS_BARS"
_DOWNLOADS = "huggingface_hub"


def quieten() -> None:
    """Turns off the bars of Transformers ("Loading weights", "Writing model shards") and the warnings of `NOISE`.

    Bars of downloads stay, for they take minutes. To be called before Transformers is imported, or after; a user's own
    `HF_HUB_DISABLE_PROGRESS_BARS` decides instead.
    """
    for beginning in NOISE:
        warnings.filterwarnings("ignore", beginning)
    if os.environ.get(_BARS):
        return
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.disable_progress_bar()
    disable_progress_bars()  # which Transformers asks when it is imported
    enable_progress_bars(_DOWNLOADS)
