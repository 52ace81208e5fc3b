"""The hub: desired state in etcd, long-polls for agents, judges that are pure.

Any number of equal hubs run on one etcd and own nothing: what counts lies in etcd, heartbeats lie in memory. Each hub
lists etcd once, follows one watch (`etcd.mirror`), and answers everybody from that copy. `board` holds the agents'
polls and wakes those whom a change concerns; `rpc.agents` takes their heartbeats and leadership calls (`leases`,
`leadership`); `rpc.operators` and `rpc.enrol` serve people and newcomers. One hub at a time holds the controllers'
claim and carries out what the `judges` say. `main` puts it together, and takes it apart in an orderly way.
"""

import os

# gRPC's C core reads this once, when it is first imported. Without it every failed handshake of a stranger writes a
# line of its own format between the event log's.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
