"""Drives `custody sql` on a pseudo-terminal, as a person does.

    shell.py CUSTODY URL DATA_DIR FOLDER

FOLDER holds endless.sql, a query that never ends; home and history are made in it.
"""

import fcntl
import os
import pty
import re
import select
import signal
import stat
import struct
import sys
import termios
import time
import urllib.request

CUSTODY, URL, DATA_DIR, FOLDER = sys.argv[1:5]
HISTORY = os.path.join(FOLDER, "state", "custody", "sql_history")
PROMPT = "custody=> "
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")
SECONDS = float(os.environ.get("CUSTODY_TEST_SECONDS", "120"))


class Shell:
    """A session, and what it showed that was not looked at yet."""

    def __init__(self, *args, rows=200, columns=200, **environment):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            env = {k: v for k, v in os.environ.items() if k not in ("PAGER", "LESS", "CUSTODY_TOKEN")}
            env |= {"TERM": "xterm", "HOME": FOLDER, "XDG_STATE_HOME": os.path.join(FOLDER, "state"), **environment}
            # The size is set before the program looks at it.
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.execve(CUSTODY, [CUSTODY, "sql", *args], env)
        self.seen, self.raw = "", ""
        self.expect(PROMPT)

    def read(self):
        ready, _, _ = select.select([self.fd], [], [], 0.1)
        if not ready:
            return True
        try:
            data = os.read(self.fd, 1 << 16)
        except OSError:
            return False
        text = data.decode(errors="replace")
        self.raw += text
        self.seen += ESCAPES.sub("", text).replace("\r", "")
        return bool(data)

    def expect(self, text):
        """Waits for a text; what comes before it is given, and not looked at again."""
        end = time.monotonic() + SECONDS
        while text not in self.seen:
            alive = self.read()
            if text not in self.seen and (not alive or time.monotonic() > end):
                raise SystemExit(f"{text!r} did not come: {self.seen!r}")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text):
        os.write(self.fd, text.encode())

    def ask(self, line, *texts):
        """A line, what its answer must show in this order, and the prompt behind it."""
        self.type(line + "\r")
        before = "".join(self.expect(text) + text for text in texts)
        return before + self.expect(PROMPT)

    def leave(self, how):
        self.type(how)
        end = time.monotonic() + SECONDS
        while self.read():
            if time.monotonic() > end:
                raise SystemExit(f"it did not leave: {self.seen!r}")
        _, status = os.waitpid(self.pid, 0)
        assert status == 0, status

    def running(self, queries):
        """Waits until the server runs so many queries."""
        end = time.monotonic() + SECONDS
        while True:
            metrics = urllib.request.urlopen(URL + "/metrics").read().decode()
            if f"\ncustody_sql_queries_running {queries}\n" in metrics:
                return
            assert time.monotonic() < end, f"not {queries} queries"
            time.sleep(0.05)


def statements(shell):
    shell.type("SELECT 6 *\r")
    shell.expect("custody-> ")
    shell.ask("7 AS answer;", "42", "1 row")
    # Two on a line, and a semicolon that ends nothing.
    shell.ask("SELECT 40 + 1 AS a; SELECT ';' || 'x' AS b;", "41", ";x")
    shell.type("SELECT 'open\r")
    shell.expect("custody'> ")
    shell.type("\x03")
    shell.expect(PROMPT)
    shell.ask("SELECT 4300 + 21 AS fresh;", "4321")
    shell.ask("SELECT nothing FROM spans;", "error: line 1, column 8", "nothing")
    told = shell.ask("SELECT chr(27) || '[31m' || chr(10) || 'x' AS evil;", "\u241b[31m\u240ax")
    assert "1 row" in told and "\x1b[31m" not in shell.raw


def completion(shell):
    shell.type("SELECT kind FROM ledg")
    shell.expect("ledg")
    shell.type("\t")
    shell.expect("ledger ")
    shell.type("WHERE leaf")
    shell.expect("leaf")
    shell.type("\t")
    shell.expect("leaf_hash")
    shell.ask(" IS NOT NULL ORDER BY seq LIMIT 1;", "log", "1 row")
    # What can stand there, if there is more than one.
    shell.type("SELECT * FROM spans_as\t")
    shell.expect("spans_as_of(")
    shell.type("\x03")
    shell.expect(PROMPT)
    shell.type("\\d viol\t")
    shell.expect("violations")
    shell.ask("", "check_id", "What")
    shell.type("\\run grant_ch\t")
    shell.expect("grant_chain ")
    shell.type("\x03")
    shell.expect(PROMPT)


def commands(shell):
    shell.ask("\\d", "spans", "violations", "replay('<trace")
    shell.ask("\\d spans", "trace_id", "start_time", "Timestamp(ns, UTC)")
    shell.ask("\\d nosuch", "there is no table nosuch")
    shell.ask("\\df covers", "authority_covers", "scalar")
    shell.ask("\\l", "grant_chain", "grant=...", "Through which chain did this grant come?")
    shell.ask("\\run agents", "violations", "rows")
    shell.ask("\\run grant_chain", "error: grant_chain needs the parameter grant")
    shell.ask("\\x on", "expanded is on")
    shell.ask("SELECT 3000 + 3 AS wide;", "-[ record 1 ]", "wide | 3003")
    shell.ask("\\x", "expanded is off")
    shell.ask("\\format json", "format is json")
    shell.ask("SELECT 5000 + 5 AS n;", '{"n":5005}')
    shell.ask("\\format parquet", "format is parquet")
    shell.ask("SELECT 1 AS n;", "nothing for a terminal")
    shell.ask("\\format xml", "there is no format xml")
    shell.ask("\\format table", "format is table")
    shell.ask("\\timing on", "timing is on")
    shell.ask("SELECT 60 + 6 AS n;", "66", "Time: ", " ms")
    shell.ask("\\timing off", "timing is off")
    shell.ask("\\set who 'Ada L'")
    shell.ask("SELECT $who AS w, $who = 'Ada L' AS same;", "Ada L", "true")
    shell.ask("\\rows 2", "2 rows")
    shell.ask("SELECT unnest([1, 2, 3]) AS n;", "2 rows (there are more")
    shell.ask("\\rows 10000", "10000 rows")
    shell.ask("\\?", "\\timing [on|off]")
    shell.ask("\\nosuch", "there is no command \\nosuch")


def files(shell):
    path = os.path.join(FOLDER, "answer.csv")
    shell.ask("\\format csv", "format is csv")
    shell.ask(f"\\o {path}")
    shell.ask("SELECT chr(27) AS raw, 1 AS n;", "1 rows to")
    shell.ask("SELECT 2 AS m;", "1 rows to")
    shell.ask("\\o")
    assert open(path).read() == "raw,n\n\x1b,1\nm\n2\n", "a file has the values as they are"
    shell.ask("\\format table", "format is table")
    path = os.path.join(FOLDER, "answer.custody")
    shell.ask("SELECT seq FROM spans ORDER BY seq LIMIT 3;", "3 rows")
    shell.ask(f"\\evidence {path}", "3 records with proofs")
    assert open(path).readline().startswith('{"type":"custody-bundle"')


def cancelling(shell, is_server):
    shell.type(f"\\i {FOLDER}/endless.sql\r")
    shell.expect("(Ctrl-C cancels)")
    if is_server:
        shell.running(1)
    shell.type("\x03")
    shell.expect("cancelled")
    shell.expect(PROMPT)
    if is_server:
        # The server was told, and stops.
        shell.running(0)
    shell.ask("SELECT 7000 + 7 AS still_there;", "7007")


def history():
    shell = Shell("--url", URL)
    # What was typed over two lines is one entry.
    shell.type("\x12AS answer")
    shell.expect("answer;")
    shell.ask("", "42", "1 row")
    shell.ask(" SELECT 800 + 8 AS unkept;", "808")
    shell.leave("\x04")
    text = open(HISTORY).read()
    assert "still_there" in text and "unkept" not in text, text
    assert stat.S_IMODE(os.stat(HISTORY).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(HISTORY)).st_mode) == 0o700
    shell = Shell("--url", URL, "--no-history")
    shell.ask("SELECT 900 + 9 AS private;", "909")
    shell.leave("quit\r")
    assert open(HISTORY).read() == text


def paging():
    long = "SELECT unnest([1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20]) AS n;"
    shell = Shell("--url", URL, rows=10, columns=150, PAGER="sed s/^/PAGED:/")
    told = shell.ask(long, "20 rows")
    assert "PAGED:| n" in told and "PAGED:20 rows" in told.replace("\n", ""), told
    told = shell.ask("SELECT 10 + 1 AS few;", "11")
    assert "PAGED" not in told, "what fits is shown as it is"
    shell.ask("\\pager off", "paging is off")
    assert "PAGED" not in shell.ask(long, "20 rows")
    shell.leave("\x04")
    shell = Shell("--url", URL, "--no-pager", rows=10, columns=150, PAGER="sed s/^/PAGED:/")
    assert "PAGED" not in shell.ask(long, "20 rows")
    shell.leave("\x04")
    # Without PAGER it is less, which waits at the first screen.
    shell = Shell("--url", URL, rows=10, columns=150)
    if any(os.access(os.path.join(d, "less"), os.X_OK) for d in os.environ["PATH"].split(":")):
        shell.type(long + "\r")
        shell.expect("| 5")
        shell.type("q")
        shell.expect(PROMPT)
    shell.leave("\x04")


def main():
    shell = Shell("--url", URL, "--no-pager")
    for part in (statements, completion, commands, files):
        part(shell)
    cancelling(shell, is_server=True)
    shell.leave("\\q\r")
    history()
    paging()
    # The same off a directory, beside the server that runs on it.
    shell = Shell("--data-dir", DATA_DIR, "--no-pager")
    shell.ask("SELECT count(*) > 0 AS some FROM spans;", "true")
    cancelling(shell, is_server=False)
    shell.leave("exit;\r")
    print("ok")


signal.alarm(1800)
main()
