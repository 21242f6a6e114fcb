"""A sandbox for generated programs. Each runs in a process of its own; three interpreters take part.

- `runner`, in the process that uses the sandbox, starts a supervisor for each program and reads what it reports.
- `supervisor`, with the system calls of `linux`, gives up what the kernel lets it give up (network, other processes,
  files), starts the third interpreter, and outlives the program to end all that it started.
- `program` runs the program, as a user without privileges, and reports how that ended.

The last two interpreters know only the standard library: nothing there imports `asarm`, which would import torch.
`isolation` finds out what the sandbox enforces on this machine.
"""
