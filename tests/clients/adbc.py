"""Asks over Arrow Flight SQL with the ADBC driver, as Python programs do."""

import sys

import adbc_driver_flightsql.dbapi as flight

# With a user and a password, as forms of tools ask for them: they are shown in a handshake.
with flight.connect(sys.argv[1], db_kwargs={"username": "ada", "password": "any"}) as connection:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 AS one")
        assert cursor.fetchall() == [(1,)]
with flight.connect(sys.argv[1]) as connection:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) AS n FROM tool_calls")
        assert cursor.fetchall() == [(601,)]
        cursor.execute("SELECT tool, count(*) AS n FROM tool_calls WHERE tool = $1 AND seq > $2 GROUP BY 1", ("send_money", 0))
        ((tool, count),) = cursor.fetchall()
        assert tool == "send_money" and count > 10, (tool, count)
        cursor.execute("SELECT * FROM spans")
        table = cursor.fetch_arrow_table()
        assert table.num_rows == 1449 and str(table.schema.field("start_time").type) == "timestamp[ns, tz=UTC]"
        for sql, what in [("DROP TABLE spans", "read-only"), ("SELECT naem FROM spans", "naem")]:
            try:
                cursor.execute(sql)
            except Exception as error:
                assert what in str(error), error
            else:
                raise AssertionError(sql)
    objects = connection.adbc_get_objects(depth="tables").read_all().to_pylist()
    names = {t["table_name"] for s in objects[0]["catalog_db_schemas"] for t in s["db_schema_tables"]}
    assert {"spans", "events", "violations", "ledger"} <= names, names
    schema = connection.adbc_get_table_schema("grants")
    assert "grant_id" in schema.names
    assert connection.adbc_get_table_types() == ["TABLE", "VIEW"]
    info = connection.adbc_get_info()
    assert info["vendor_name"] == "Custody", info
    # To the columns, with the types that drivers know, and no keys.
    objects = connection.adbc_get_objects(depth="all", table_name_filter="grants").read_all().to_pylist()
    ((table,),) = [s["db_schema_tables"] for o in objects for s in o["catalog_db_schemas"]]
    columns = {c["column_name"] for c in table["table_columns"]}
    assert {"grant_id", "actions", "expires_at"} <= columns and not table["table_constraints"], table
    # The driver refuses rows whose columns are not the announced ones, be it that one may be null: each table and
    # function, and what is of several types, comes as it was announced.
    with connection.cursor() as cursor:
        cursor.execute("SELECT table_name, kind, usage FROM custody_tables ORDER BY table_name")
        tables = cursor.fetchall()
        assert len(tables) > 30, tables
        for name, kind, usage in tables:
            arguments = {"dwell_time_by": "'rule'", "coverage_by": "'rule'"}.get(name, "'grant-9479ff18f11527a5'")
            if name.endswith("_as_of"):
                arguments = "500"
            source = f"{name}({arguments})" if kind == "function" else name
            try:
                with connection.cursor() as own:
                    own.execute(f"SELECT * FROM {source}")
                    own.fetch_arrow_table()
            except Exception as error:
                raise AssertionError(f"{source} ({usage}): {error}")
        cursor.execute("SELECT s.attributes -> 'gen_ai.tool.name' AS asked, * FROM spans s JOIN events e ON e.seq = s.seq WHERE s.seq = 77")
        table = cursor.fetch_arrow_table()
        assert table["asked"].to_pylist() == ['"send_money"'], table["asked"]
        assert len(set(table.column_names)) == len(table.column_names) and "seq_2" in table.column_names
    with connection.cursor() as cursor:
        # Parameters of every type that a query can have, in table functions too.
        for value in ["text", 7, -1, 2.5, True, None]:
            cursor.execute("SELECT $1 AS v", (value,))
            assert cursor.fetchall() == [(value,)], value
        cursor.execute("SELECT count(*) FROM delegation_chain($1)", ("grant-9479ff18f11527a5",))
        assert cursor.fetchall() == [(2,)]
        # As JDBC and ODBC write them: in the order of the text, wherever they stand.
        cursor.execute(
            "WITH c AS (SELECT ? AS a) SELECT a, '?', tool FROM c, tool_calls WHERE tool = ? AND seq > ? LIMIT ?",
            ("first", "send_money", 0, 2),
        )
        assert cursor.fetchall() == [("first", "?", "send_money")] * 2
        cursor.execute("SELECT count(*) FROM delegation_chain(?) WHERE depth >= ?", ("grant-9479ff18f11527a5", 1))
        assert cursor.fetchall() == [(1,)]
        # What a prepared statement says of its parameters.
        sql = "SELECT count(*) FROM spans WHERE seq > ? AND name = ? AND start_time < ?"
        cursor.execute("SELECT min(start_time), max(start_time) FROM spans")
        (ends,) = cursor.fetch_arrow_table().to_batches()
        schema = cursor.adbc_prepare(sql)
        assert [str(field.type) for field in schema] == ["uint64", "string", "timestamp[ns, tz=UTC]"], schema
        cursor.execute("SELECT count(*) FROM spans WHERE start_time > $1 AND start_time <= $2", ends)
        assert 0 < cursor.fetchone()[0] < 1449
        assert cursor.adbc_prepare("SELECT 1").names == []
        for sql, values, what in [
            ("SELECT ?, $1", (1,), "not both"),
            ("SELECT ?, ?", (1,), "has 2 parameters, and 1 values were given"),
            ("SELECT ?", (float("nan"),), "finite"),
            ("SELECT ?", (), "has 1 parameters, and 0"),
        ]:
            try:
                # A cursor of its own: the driver keeps values that were bound before.
                with connection.cursor() as own:
                    own.execute(sql, values or None)
                    own.fetchall()
            except Exception as error:
                assert what in str(error), (sql, error)
            else:
                raise AssertionError(sql)
        # Many rows of parameters are for updates, of which there are none.
        try:
            cursor.executemany("SELECT $1", [(1,), (2,)])
        except Exception as error:
            assert "ExecuteUpdate" in str(error), error
        else:
            raise AssertionError("executemany")
        # More rows than are ever held: the first come before the last are made, and closing ends the rest.
        cursor.execute("SELECT a.seq FROM spans a CROSS JOIN spans b LIMIT 2000000")
        reader = cursor.fetch_record_batch()
        rows = sum(batch.num_rows for batch in reader)
        assert rows == 2000000, rows
        cursor.execute("SELECT a.seq FROM spans a CROSS JOIN spans b CROSS JOIN spans c")
        assert cursor.fetchone() is not None
        cursor.adbc_cancel()
print("ok")
