"""`dph` on the small world, for tests that start it in processes of their own: `python -m small_cli train ...`."""

from __future__ import annotations

import sys
from dataclasses import replace

from small import RewardsFirstToken, small_profile

from dphlib.cli import main as cli
from dphlib.settings.profiles import Profile
from dphlib.verify import Verifier


def settings() -> Profile:
    """The small profile with checkpoints, and with prompts that cannot be cut evenly."""
    small = small_profile()
    return replace(small, train=replace(small.train, prompts=5, checkpoint_every=2))


def judge_first_tokens() -> None:
    """Random weights solve nothing; a policy whose answers are judged by their first token has something to learn."""
    Verifier.groups = RewardsFirstToken.groups


if __name__ == "__main__":
    cli.profile_from_environment = lambda name: settings()
    judge_first_tokens()
    sys.exit(cli.main())
