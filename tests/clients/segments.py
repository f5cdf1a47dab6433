"""Reads the segments of a data directory with engines that are not ours, as they are on disk, and
prints what each finds, in one JSON object: rows by table, and the spans of one trace.

    segments.py SEGMENTS TRACE_ID
"""

import glob
import json
import sys

import duckdb
import pandas  # It comes with lifelines.
import polars
import pyarrow.dataset
import pyarrow.parquet

folder, trace = sys.argv[1:]
tables = ["spans", "logs", "metrics", "events"]
paths = {table: sorted(glob.glob(f"{folder}/{table}-*.parquet")) for table in tables}

found = {"pyarrow": {}, "duckdb": {}, "polars": {}, "pandas": {}, "files": []}
for table, files in paths.items():
    if not files:
        continue
    found["pyarrow"][table] = pyarrow.dataset.dataset(files).count_rows()
    found["duckdb"][table] = duckdb.sql(f"SELECT count(*) FROM read_parquet({files})").fetchall()[0][0]
    found["polars"][table] = polars.scan_parquet(files).select(polars.len()).collect().item()
    # Whole files, with every column: that is how notebooks read them.
    found["pandas"][table] = sum(len(pandas.read_parquet(file)) for file in files)

spans = pyarrow.dataset.dataset(paths["spans"]).to_table(filter=pyarrow.dataset.field("trace_id") == trace)
found["pyarrow"]["names"] = sorted(spans["name"].to_pylist())
ask = f"SELECT name FROM read_parquet({paths['spans']}) WHERE trace_id = '{trace}' ORDER BY 1"
found["duckdb"]["names"] = [row[0] for row in duckdb.sql(ask).fetchall()]
lazy = polars.scan_parquet(paths["spans"]).filter(polars.col("trace_id") == trace).select("name").collect()
found["polars"]["names"] = sorted(lazy["name"].to_list())

frames = pandas.concat(pandas.read_parquet(file) for file in paths["spans"])
found["pandas"]["names"] = sorted(frames[frames["trace_id"] == trace]["name"])
if len(frames):
    assert str(frames["start_time"].dtype) == "datetime64[ns, UTC]", frames.dtypes

for path in paths["spans"]:
    file = pyarrow.parquet.ParquetFile(path)
    said = {key.decode(): value.decode() for key, value in file.metadata.metadata.items() if key.startswith(b"custody.")}
    seqs = file.read(["seq"])["seq"].to_pylist()
    column = file.metadata.row_group(0).column(file.schema_arrow.get_field_index("trace_id"))
    said.update(rows=len(seqs), first=seqs[0], last=seqs[-1], compression=column.compression,
                sorted=seqs == sorted(seqs), page_index=column.has_column_index and column.has_offset_index)
    found["files"].append(said)
print(json.dumps(found))
