"""Says lines to the socket of a job, without any package: `phalanx run -- python3 examples/shell/socket_lines.py`."""

import json
import os
import socket

connection = socket.socket(socket.AF_UNIX)
connection.connect(os.environ["PHALANX_SOCKET"])
lines = connection.makefile("rw")
for request in [{"report": {"step": 1, "metrics": {"loss": 0.25}}}, {"repeat": 1}]:
    print(json.dumps(request), file=lines, flush=True)
    print(lines.readline(), end="")
