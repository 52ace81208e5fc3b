"""The edge of the hub: gRPC services. Each method authorises, converts, calls, converts.

Protobuf messages and gRPC statuses stop in this folder: `convert` knows the agents' messages, `errors` turns our
failures into statuses, `access` says which operator may do what. What a call does lies behind, in plain Python.
"""
