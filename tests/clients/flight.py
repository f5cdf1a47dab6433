"""Asks a Flight SQL server what the ADBC driver does not: as Arrow's own client, message by message."""

import sys

import pyarrow as pa
import pyarrow.flight as flight

TYPE = "type.googleapis.com/arrow.flight.protocol.sql."


def field(number, value):
    """A field of a protobuf message, of text, bytes or a number below 128."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    data = value.encode() if isinstance(value, str) else value
    size, length = len(data), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


def info(client, command, body=b""):
    message = field(1, TYPE + command) + field(2, body)
    return client.get_flight_info(flight.FlightDescriptor.for_command(message))


def table(client, command, body=b""):
    got = info(client, command, body)
    read = client.do_get(got.endpoints[0].ticket).read_all()
    assert got.schema.equals(read.schema), (command, got.schema, read.schema)
    return read


def fails(kind, ask):
    try:
        ask()
    except kind as error:
        return str(error)
    raise AssertionError(f"this should be {kind}")


def cancel(client, got):
    action = flight.Action("CancelFlightInfo", field(1, got.serialize()))
    return [bytes(result.body) for result in client.do_action(action)]


client = flight.connect(sys.argv[1])

known = table(client, "CommandGetSqlInfo")
ids = set(known.column("info_name").to_pylist())
# All that Flight SQL has, but for the versions of Substrait, which there is none of.
assert ids == {*range(6), *range(8, 12), 100, 101, *range(500, 577)}, ids
some = table(client, "CommandGetSqlInfo", field(1, 3))
assert some.to_pydict() == {"info_name": [3], "value": [True]}, some

types = table(client, "CommandGetXdbcTypeInfo").to_pylist()
assert {t["type_name"] for t in types} >= {"BOOLEAN", "BIGINT", "DOUBLE", "VARCHAR", "TIMESTAMP"}
(text,) = table(client, "CommandGetXdbcTypeInfo", field(1, 12)).to_pylist()
assert text["type_name"] == "VARCHAR" and text["literal_prefix"] == "'" and text["case_sensitive"]

keys = table(client, "CommandGetPrimaryKeys", field(3, "spans"))
assert keys.num_rows == 0 and keys.column_names[-1] == "key_name"
for command in ["CommandGetExportedKeys", "CommandGetImportedKeys"]:
    keys = table(client, command, field(3, "spans"))
    assert keys.num_rows == 0 and len(keys.column_names) == 13, keys
cross = field(3, "spans") + field(6, "logs")
assert table(client, "CommandGetCrossReference", cross).num_rows == 0

only = table(client, "CommandGetTables", field(3, "gra%") + field(4, "TABLE"))
assert only.column("table_name").to_pylist() == ["grants"], only
assert table(client, "CommandGetTables", field(4, "SYSTEM")).num_rows == 0
# What each column holds, where JDBC's driver looks for it.
for kind in table(client, "CommandGetTables", field(3, "%") + field(5, 1)).to_pylist():
    for column in pa.ipc.read_schema(pa.py_buffer(kind["table_schema"])):
        assert column.metadata[b"ARROW:FLIGHT:SQL:REMARKS"], (kind["table_name"], column)
assert table(client, "CommandGetDbSchemas").to_pylist() == [
    {"catalog_name": "datafusion", "db_schema_name": "public"}
]

# A query is cancelled while it is sent, and before; one that is not cancelled goes on.
endless = "SELECT a.seq FROM spans a CROSS JOIN spans b CROSS JOIN spans c"
got = info(client, "CommandStatementQuery", field(1, endless))
reader = client.do_get(got.endpoints[0].ticket)
assert reader.read_chunk().data.num_rows > 0
assert cancel(client, got) == [b"\x08\x01"]


def rest():
    while True:
        reader.read_chunk()


assert "cancelled" in fails(flight.FlightCancelledError, rest)
got = info(client, "CommandStatementQuery", field(1, "SELECT 1"))
cancel(client, got)
fails(flight.FlightCancelledError, lambda: client.do_get(got.endpoints[0].ticket).read_all())
assert {a.type for a in client.list_actions()} >= {"CancelFlightInfo", "CancelQuery"}

# Errors have their own codes.
ask = lambda sql: info(client, "CommandStatementQuery", field(1, sql))
assert "naem" in fails(pa.ArrowInvalid, lambda: ask("SELECT naem FROM spans"))
assert "read-only" in fails(flight.FlightUnauthorizedError, lambda: ask("DROP TABLE spans"))
assert "ticket" in fails(pa.ArrowInvalid, lambda: cancel(client, flight.FlightInfo(
    got.schema, got.descriptor, [flight.FlightEndpoint(b"nonsense", [])], -1, -1)))
print("ok")
