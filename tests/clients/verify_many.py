"""verify.py over every file of a folder in one process: `name status reason`, a line each.

    verify_many.py FOLDER VKEY
"""

import contextlib
import io
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tools"))
import verify  # noqa: E402

folder, vkey = sys.argv[1:]
for name in sorted(os.listdir(folder)):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = verify.main([os.path.join(folder, name), "--vkey", vkey, "--json"])
    print(name, status, json.loads(out.getvalue()).get("reason"))
