"""The commands `dph data list` and `dph data check`; what they do is in `data.report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def check(data_dir: Path, sets: tuple[str, ...] = (), report: Path = Path("data_check.json"), workers: int = 1) -> int:
    """Runs every gold of the data sets in a folder; exit status 1 if one fails.

    Args:
        data_dir: folder of the official files, see `dph data list`.
        sets: such as `bird`, `spider_dev`, `math500`; none for all that the folder holds.
        report: JSON file that is written.
        workers: processes that verify.
    """
    from dphlib.data.report import check_folder

    return check_folder(data_dir, sets, report, workers)


def show(data_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None) -> int:
    """Lists the data sets: files, hub copies, licences, sources, and what a folder holds of them.

    Args:
        data_dir: folder to look into.
    """
    from dphlib.data.report import print_sets

    return print_sets(data_dir)


Command = (
    Annotated[int, tyro.conf.subcommand("check", constructor=check)]
    | Annotated[int, tyro.conf.subcommand("list", constructor=show)]
)


def data(command: tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[Command]]) -> int:
    """BIRD, Spider and the sets of mathematics: what there is, and whether its golds hold."""
    return command
