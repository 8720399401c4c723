"""Starts the measured programs, in a process of its own that is kept as small as Python can be. Owns fork, exec,
wait4 and the deadline. It is a process of its own because the kernel charges a program with the memory of the process
that forked it until the exec: below a large parent every small program would look as large as that parent. It imports
as little as possible for the same reason. Speaks length-prefixed marshal on stdin and stdout: a list of jobs in, the
list of their outcomes back. The jobs of one list run concurrently."""

import marshal
import os
import signal
import sys
import time

children = {}


def stop(*_):
    """Kills the remaining processes, by process id."""
    for pid in list(children):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # The signal came between its end and its removal from the list.


def leave(*_):
    stop()
    try:
        while True:
            os.wait()
    except ChildProcessError:
        os._exit(1)


def start(job):
    began = time.monotonic()
    pid = os.fork()
    if pid:
        return began, pid
    try:
        for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        for tasks in job.get("cgroups", ()):
            with open(tasks, "w") as file:
                file.write(str(os.getpid()))
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(job["stdout"], write, 0o644), 1)
        os.dup2(os.open(job["stderr"], write, 0o644), 2)
        os.closerange(3, 64)
        os.chdir(job["cwd"])
        os.execve(job["argv"][0], job["argv"], job["env"])
    except OSError as error:
        os.write(2, f"cannot start {job['argv'][0]}: {error}\n".encode())
    finally:
        os._exit(127)


def run(jobs):
    signal.alarm(max(job["limit"] for job in jobs))
    zero = time.monotonic()
    began = {}
    done = [None] * len(jobs)
    for at, job in enumerate(jobs):
        while time.monotonic() < zero + job.get("delay", 0):
            time.sleep(0.001)
        start_time, pid = start(job)
        children[pid] = at
        began[at] = start_time - zero
    while children:
        pid, status, used = os.wait4(-1, 0)
        at = children.pop(pid)
        done[at] = {
            "began": began[at],
            "wall": time.monotonic() - zero - began[at],
            "cpu": used.ru_utime + used.ru_stime,
            "rss": used.ru_maxrss * 1024,
            "exit": os.waitstatus_to_exitcode(status),
        }
    signal.alarm(0)
    return done


def main():
    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    pipe_in, pipe_out = os.dup(0), os.dup(1)
    with open(pipe_in, "rb") as requests, open(pipe_out, "wb") as answers:
        while True:
            head = requests.read(4)
            if len(head) < 4:
                return
            answer = marshal.dumps(run(marshal.loads(requests.read(int.from_bytes(head, "big")))))
            answers.write(len(answer).to_bytes(4, "big") + answer)
            answers.flush()


if __name__ == "__main__":
    sys.exit(main())
