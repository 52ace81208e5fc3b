"""The pure floor of the hub: facts go in, judgements come out; no clock, no dice, no I/O, so tables test it.

`assemble` turns the mirror into one node's whole desired state; `health` tells which nodes are silent; `lifecycle`
tells an instance's phase, conditions and the work that is due; `placement` says where members go and why not elsewhere.
The shells around them (board, controllers, RPC) gather the facts, hand in the time, and write down what was judged.
"""
