"""`moorage-demo`: a whole Moorage on this machine, without root and without a network.

`run` starts etcd, one hub and three agents, each a process of its own on its own loopback address, and makes the
instance demo/orders; the same commands and files as in a real installation, only closer together. `check` plays the
whole story unattended and says in the end whether it is true.

`layout` says where everything lies and on which ports; `tools` finds the programs; `parts` are the processes; `stand`
starts and stops the whole; `story`, `writer` and `traces` are the check. Nothing here imports hub, agent or proxy: they
are started by their command names, as an operator would.
"""

from cli.demo.command import main

__all__ = ["main"]
