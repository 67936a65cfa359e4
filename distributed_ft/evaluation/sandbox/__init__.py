"""Where code that a model wrote is run: a process of its own that reaches neither files, network nor other processes.

What holds it, all by the kernel, put on in `cage` before the code is read, and never to be taken off again:

* Landlock: reads only Python and its libraries, writes only its own temporary folder, and sees no process outside.
* seccomp: no socket, no new process (so no fork bomb), no signal to another, no ptrace, no mount, no io_uring.
* No capabilities, also where the driver is root; an empty environment; no open file but its output.
* Limits of memory, CPU time, wall time, file size and open files; what is left is killed as a group.
"""

from distributed_ft.evaluation.sandbox.run import Limits, Outcome, problem, run_python

__all__ = ["Limits", "Outcome", "problem", "run_python"]
