"""DPH-RL: reinforcement learning with verifiable rewards held by a mass-covering f-divergence.

`import dphlib` is cheap and pulls in no torch; import the module you need
(`dphlib.divergences`, `dphlib.losses`, `dphlib.partition`, ...).
"""

__version__ = "0.1.0"
