"""`make start`: JupyterLab on the first day that is not finished, on this machine only, without news and
pop-ups.
"""

import json
import os
import secrets
import socket
import sys
import webbrowser
from pathlib import Path
from urllib.parse import quote

from course_lib.classroom import backups, progress, reset
from course_lib.classroom import lesson as lessons

# Defaults of the page; what the learner sets in JupyterLab's own settings comes before them.
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": False,
    },
    # `make check-day` reads the saved file: save often.
    "@jupyterlab/docmanager-extension:plugin": {"autosave": True, "autosaveInterval": 10},
}


class StartError(Exception):
    """JupyterLab cannot be opened; the message says why and what to do."""


def choose_day(day: int | None = None) -> int:
    """The day to open: the one asked for, or the first that has not passed; the last one if all have."""
    days = lessons.available_days()
    if not days:
        raise StartError(f"no lessons were found under {lessons.root() / 'solutions'}: is this a full clone?")
    return day or progress.first_unfinished(progress.load()) or days[-1]


def prepare(day: int) -> Path:
    """The learner's notebook of the day, put there if it is missing, and copied before it is first opened."""
    path = lessons.root() / "days" / lessons.find_day(day).name / "lesson.ipynb"
    if not path.exists():
        path, _ = reset.reset_day(day)
    with progress.edit() as kept:
        entry = progress.day_entry(kept, day)
        first = entry["opened_at"] is None
        entry["opened_at"] = entry["opened_at"] or progress.now()
    if first:
        backups.keep(path, backups.new_folder("first-open"))
    return path


def free_port(first: int = 8888) -> int:
    """The first port from `first` on at which nothing on this machine listens."""
    for port in range(first, first + 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise StartError(f"the ports {first} to {first + 99} are all taken: name another with --port")


def command(notebook: Path, browser: bool, port: int) -> list[str]:
    """The command line of JupyterLab: its root is the course's folder, its address this machine's own."""
    root = lessons.root()
    arguments = [
        sys.executable,
        "-m",
        "jupyterlab",
        str(notebook.relative_to(root)),
        f"--ServerApp.root_dir={root}",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--ServerApp.answer_yes=True",  # one Ctrl-C is enough
        "--ServerApp.log_level=ERROR",
        "--LabApp.log_level=ERROR",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.news_url=None",
        "--LabApp.extension_manager=readonly",
    ]
    if not browser:
        arguments.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append(
            "--allow-root"
        )  # rented machines log in as root; the server answers this machine only
    return arguments


def environment(token: str) -> dict[str, str]:
    """JupyterLab's environment: the token, unseen by `ps`, and our defaults for its settings, in
    `.course/jupyter/`.
    """
    folder = lessons.root() / ".course" / "jupyter"
    defaults = folder / "labconfig" / "default_setting_overrides.json"
    defaults.parent.mkdir(parents=True, exist_ok=True)
    defaults.write_text(json.dumps(SETTINGS, indent=1) + "\n", encoding="utf-8")
    found = dict(os.environ)
    found["JUPYTER_CONFIG_PATH"] = os.pathsep.join(
        filter(None, [str(folder), found.get("JUPYTER_CONFIG_PATH")])
    )
    found["JUPYTERLAB_WORKSPACES_DIR"] = found.get("JUPYTERLAB_WORKSPACES_DIR") or str(folder / "workspaces")
    found["JUPYTER_TOKEN"] = token
    # Two threads that spin for one core make torch fifty times slower while the checks run beside it.
    found.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return found


def has_browser() -> bool:
    """Whether a browser can be opened here: not over ssh or in a container without a screen."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def start(day: int | None = None, browser: bool | None = None, port: int | None = None) -> None:
    """Open JupyterLab in place of this process; it runs until Ctrl-C."""
    number = choose_day(day)
    notebook = prepare(number)
    shows = has_browser() if browser is None else browser
    chosen = free_port() if port is None else port
    token = secrets.token_hex(16)
    place = quote(str(notebook.relative_to(lessons.root())))
    print(f"Day {number}: {lessons.load_lesson(number).title}\n")
    print(f"  http://127.0.0.1:{chosen}/lab/tree/{place}?token={token}\n")
    if shows:
        print("Your browser opens it. It answers on this machine only; Ctrl-C here stops it.", flush=True)
    else:
        print("Open this address in a browser. It answers on this machine only; Ctrl-C here stops it.")
        if os.environ.get("SSH_CONNECTION"):
            print(f"From your own machine, first: ssh -L {chosen}:127.0.0.1:{chosen} {socket.gethostname()}")
        sys.stdout.flush()
    os.chdir(lessons.root())
    arguments = command(notebook, shows, chosen)
    os.execvpe(arguments[0], arguments, environment(token))
