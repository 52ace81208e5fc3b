"""The command line: `moorctl` for operators, `moorage-demo` for the first ten minutes.

A verb of `moorctl` reads its arguments, asks the hub through `client` (the only module that sees protobuf messages),
and says the answer through `output` (the only module that writes to the terminal). `session` carries what is common to
all verbs: which context, which format. `progress` waits for an instance and shows what it waits for; `apply` reads
documents and blames mistakes on file and line.

What a person may rely on: answers go to standard output and everything else to standard error; `-o json` gives the
fields of docs/reference/status.md; the exit status is one of docs/reference/exit-codes.md; a failure is told in at most
three lines that say what, of which object, and what to do next, and a traceback is shown only to who asks with
`--debug`. What destroys data asks first, and refuses where nobody can answer.

`demo` starts the other parts as processes by their command names; it imports none of them.
"""

import os

# gRPC writes lines of its own to standard error when a connection fails; what went wrong is told by `client` in words.
# It reads this when it is imported, which is after this line and before any other of the package.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
