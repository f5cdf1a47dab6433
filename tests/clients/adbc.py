"""Asks over Arrow Flight SQL with the ADBC driver, as Python programs do."""

import sys

import adbc_driver_flightsql.dbapi as flight

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
    assert connection.adbc_get_info()["vendor_name"] == "Custody"
print("ok")
