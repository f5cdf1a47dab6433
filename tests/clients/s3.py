"""A small object store that speaks S3, for the tests of exports.

It keeps objects as files, checks each request's signature by hand as AWS documents it (Signature Version 4,
query string), obeys If-None-Match and x-amz-checksum-sha256, gives lists two names at a time, and is as bad a
neighbour as real ones: now and then it answers 503, or keeps an object and loses the answer. While the file
`stall` is in its folder, puts of digests are not answered, and come to nothing.

    s3.py FOLDER      prints its port; requests.log in the folder has a line for each request
"""

import base64
import datetime
import hashlib
import hmac
import http.server
import pathlib
import socket
import sys
import threading
import time
import urllib.parse

KEY, SECRET, TOKEN, REGION, BUCKET = "AKIDTEST", "a/secret+key", "a session/token+", "eu-test-1", "events-bucket"
FOLDER = pathlib.Path(sys.argv[1])
OBJECTS = FOLDER / "objects"
LOCK = threading.Lock()
COUNTS = {"all": 0, "put": 0}


def quote(text):
    return urllib.parse.quote(text, safe="-_.~")


def digest(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def signature(method, path, query, headers, given):
    """The signature of a presigned request, by the steps in AWS's documentation."""
    names = given["X-Amz-SignedHeaders"].split(";")
    canonical_query = "&".join(f"{quote(n)}={quote(v)}" for n, v in sorted(query) if n != "X-Amz-Signature")
    canonical_headers = "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in names)
    request = "\n".join([method, path, canonical_query, canonical_headers, ";".join(names), "UNSIGNED-PAYLOAD"])
    day, region, service, kind = given["X-Amz-Credential"].split("/")[1:]
    scope = "/".join([day, region, service, kind])
    hashed = hashlib.sha256(request.encode()).hexdigest()
    to_sign = "\n".join(["AWS4-HMAC-SHA256", given["X-Amz-Date"], scope, hashed])
    key = ("AWS4" + SECRET).encode()
    for part in (day, region, service, kind):
        key = digest(key, part)
    return digest(key, to_sign).hex()


def wrong(method, path, query, headers):
    """What is wrong with the signature of a request; None for nothing."""
    given = dict(query)
    try:
        if given["X-Amz-Algorithm"] != "AWS4-HMAC-SHA256":
            return "algorithm"
        if given["X-Amz-Credential"].split("/") != [KEY, given["X-Amz-Date"][:8], REGION, "s3", "aws4_request"]:
            return "credential"
        if given["X-Amz-Security-Token"] != TOKEN:
            return "token"
        signed = datetime.datetime.strptime(given["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.timezone.utc)
        age = (datetime.datetime.now(datetime.timezone.utc) - signed).total_seconds()
        if not -60 < age < int(given["X-Amz-Expires"]) <= 3600:
            return "expired"
        # Each x-amz header must be signed, and the host.
        names = given["X-Amz-SignedHeaders"].split(";")
        if "host" not in names or any(n.startswith("x-amz-") and n not in names for n in headers):
            return "headers"
        good = signature(method, path, query, headers, given)
        return None if hmac.compare_digest(good, given["X-Amz-Signature"]) else "signature"
    except (KeyError, ValueError) as error:
        return f"unreadable: {error!r}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", code=None):
        if code:
            body = f"<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        self.noted = status
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def lose(self):
        """No answer, and no connection any more."""
        self.noted = "lost"
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def handle_any(self):
        self.noted = "?"
        path, _, query = self.path.partition("?")
        query = urllib.parse.parse_qsl(query, keep_blank_values=True)
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        key = urllib.parse.unquote(path).removeprefix(f"/{BUCKET}/")
        try:
            why = wrong(self.command, path, query, headers)
            if why:
                return self.answer(403, code="SignatureDoesNotMatch")
            with LOCK:
                COUNTS["all"] += 1
                if COUNTS["all"] % 5 == 3:
                    return self.answer(503, code="SlowDown")
                if self.command == "PUT":
                    return self.put(key, headers, body)
            return self.list(dict(query)) if key == "" else self.get(key)
        finally:
            with LOCK, open(FOLDER / "requests.log", "a") as log:
                log.write(f"{self.command} {key} {self.noted} {why or 'signed'} {headers.get('if-none-match', '-')}\n")

    do_GET = do_PUT = do_DELETE = do_POST = do_HEAD = handle_any

    def put(self, key, headers, body):
        if key.endswith(".digest") and (FOLDER / "stall").exists():
            (FOLDER / "stalled").touch()
            while (FOLDER / "stall").exists():
                time.sleep(0.01)
            return self.lose()
        path = OBJECTS / key
        if headers.get("if-none-match") == "*" and path.exists():
            return self.answer(412, code="PreconditionFailed")
        if headers.get("x-amz-checksum-sha256") != base64.b64encode(hashlib.sha256(body).digest()).decode():
            return self.answer(400, code="BadDigest")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = FOLDER / "part"
        part.write_bytes(body)
        part.rename(path)
        COUNTS["put"] += 1
        return self.lose() if COUNTS["put"] % 3 == 2 else self.answer(200)

    def get(self, key):
        path = OBJECTS / key
        return self.answer(200, path.read_bytes()) if path.is_file() else self.answer(404, code="NoSuchKey")

    def list(self, query):
        names = (path.relative_to(OBJECTS).as_posix() for path in OBJECTS.rglob("*") if path.is_file())
        names = sorted(n for n in names if n.startswith(query["prefix"]) and n > query.get("continuation-token", ""))
        page, more = names[:2], len(names) > 2
        keys = "".join(f"<Contents><Key>{urllib.parse.quote(name)}</Key></Contents>" for name in page)
        token = f"<NextContinuationToken>{page[-1]}</NextContinuationToken>" if more else ""
        text = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><EncodingType>url</EncodingType><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{token}{keys}</ListBucketResult>"
        )
        self.answer(200, text.encode())


OBJECTS.mkdir(parents=True, exist_ok=True)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
print(server.server_address[1], flush=True)
server.serve_forever()
