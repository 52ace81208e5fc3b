"""The agent: one a node, makes the node run what the hub wants of it.

`pull` fetches the node's whole desired state by long poll; one `ha.keeper.Keeper` a member gathers what is, lets the
pure `ha.decide` say what to do, and does it through `engines`; `heartbeat` renews the lease that leadership hangs on;
`proxies` tells the proxy beside it where clients go; `peer` lets the agents of one instance vouch for each other while
the hub is away. Engines and proxy are processes of their own that outlive the agent and are adopted again.

Every connection to the hub is opened from here. The agent never talks to etcd.
"""

import os

# gRPC's fork handlers run in every child that is made as another user (Python forks there, it cannot spawn) and abort
# it when a call is under way in another thread. Children of the agent never use gRPC. Read once, when grpc is imported.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
