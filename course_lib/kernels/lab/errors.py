"""What can go wrong before a kernel runs, each with the sentence that says how to mend it."""


class LabError(Exception):
    """Something of the lab's: the base of what it raises.

    `of_the_kernel`: the fault is the kernel's, not the machine's or the caller's; a grader shows it as it
    stands. `fingerprint` is equal for equal faults at different lines.
    """

    of_the_kernel = False
    fingerprint = ""


class NoCompiler(LabError):
    """There is no C++ compiler on this machine."""


class CompileError(LabError):
    """The source does not compile. The message quotes the compiler at the learner's own line.

    `line` is the number of the first line that it names, 0 where it names none.
    """

    of_the_kernel = True

    def __init__(self, message: str, line: int = 0):
        super().__init__(message)
        self.line = line


class Unsupported(CompileError):
    """The source uses what the lab does not run, named with its line: it is refused, not miscompiled."""


class LaunchError(LabError):
    """The launch does not fit the kernel: its name, arguments, grid, block, shared memory."""

    of_the_kernel = True
