"""The pure floor of the hub: facts go in, judgements come out; no clock, no dice, no I/O, so tables test it.

`assemble` turns the mirror into one node's whole desired state; `health` tells which nodes are silent; `situation`
gathers one instance; `findings` and `conditions` say what is wrong, `lifecycle` which phase it is in; `placement` says
where members go and why not elsewhere, `members` what each must run; `steps` and `upkeep` say what to write next,
`notices` what to tell.
The shells around them (board, controllers, RPC) gather the facts, hand in the time, and write down what was judged.
"""
