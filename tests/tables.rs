//! Every table, view and table function is documented, column by column, in SQL and in docs/tables.md.

mod support;

use custody_query::columns::{ColumnRow, TableRow, document};
use serde_json::Value;
use support::Server;

fn rows<T>(server: &Server, sql: &str, read: impl Fn(&Value) -> T) -> Vec<T> {
    server.sql(sql).iter().map(read).collect()
}

fn text(row: &Value, name: &str) -> String {
    row[name].as_str().unwrap_or_else(|| panic!("{name} of {row}")).to_owned()
}

#[test]
fn the_docs_are_what_the_tables_are() {
    let server = Server::start();
    let tables = rows(&server, "SELECT * FROM custody_tables", |row| TableRow {
        table_name: text(row, "table_name"),
        kind: text(row, "kind"),
        usage: text(row, "usage"),
        description: text(row, "description"),
    });
    let columns = rows(&server, "SELECT * FROM custody_columns", |row| ColumnRow {
        table_name: text(row, "table_name"),
        column_name: text(row, "column_name"),
        ordinal_position: row["ordinal_position"].as_u64().unwrap(),
        data_type: text(row, "data_type"),
        is_nullable: row["is_nullable"].as_bool().unwrap(),
        description: text(row, "description"),
    });
    for table in &tables {
        assert!(!table.description.is_empty(), "{} has no description", table.table_name);
        assert!(columns.iter().any(|c| c.table_name == table.table_name), "{} has no columns", table.table_name);
    }
    for column in &columns {
        let name = format!("{}.{}", column.table_name, column.column_name);
        assert!(!column.description.is_empty(), "{name} is not documented: see query/src/columns.rs");
    }
    // What SQL's own catalogue knows is what is documented, with the same texts, and the other way round.
    let own = "SELECT table_name, column_name, column_comment AS text FROM information_schema.columns \
               WHERE table_schema = 'public'";
    let ours = "SELECT table_name, column_name, description AS text FROM custody_columns \
                WHERE table_name IN (SELECT table_name FROM custody_tables WHERE kind <> 'function')";
    let [own, ours] = [own, ours].map(|sql| server.sql(&format!("{sql} ORDER BY 1, 2")));
    assert!(own.len() > 300 && own == ours, "{} columns, {} are documented", own.len(), ours.len());
    let own = "SELECT table_name, table_comment AS text FROM information_schema.tables WHERE table_schema = 'public'";
    let ours = "SELECT table_name, description AS text FROM custody_tables WHERE kind <> 'function'";
    let [own, ours] = [own, ours].map(|sql| server.sql(&format!("{sql} ORDER BY 1")));
    assert_eq!(own, ours);
    let own = "SELECT routine_name AS table_name, syntax_example AS usage, description FROM information_schema.routines \
               WHERE function_type = 'TABLE'";
    let ours = "SELECT table_name, usage, description FROM custody_tables WHERE kind = 'function'";
    let [own, ours] = [own, ours].map(|sql| server.sql(&format!("{sql} ORDER BY 1")));
    assert_eq!(own, ours);
    // The functions on JSON are another library's, which has no texts for them: docs/sql.md does.
    let silent = "SELECT routine_name FROM information_schema.routines WHERE routine_name NOT LIKE '%json%' \
                  AND (coalesce(description, '') = '' OR coalesce(syntax_example, '') = '')";
    assert_eq!(server.sql(silent), [] as [Value; 0], "functions that say nothing of themselves");
    let shown: Vec<String> = server
        .sql("SHOW TABLES")
        .iter()
        .filter(|row| row["table_schema"] == "public")
        .map(|row| text(row, "table_name"))
        .collect();
    let calls = server.sql("SHOW FULL COLUMNS FROM tool_calls");
    assert!(
        calls
            .iter()
            .any(|row| row["column_name"] == "seq" && row["column_comment"] == "Place of the record in the log.")
    );
    for table in tables.iter().filter(|t| t.kind != "function") {
        assert!(shown.contains(&table.table_name), "{} is not shown", table.table_name);
        let described = server.sql(&format!("DESCRIBE {}", table.table_name));
        let told: Vec<(String, String)> =
            described.iter().map(|row| (text(row, "column_name"), text(row, "description"))).collect();
        let of_table = columns.iter().filter(|c| c.table_name == table.table_name);
        let documented: Vec<_> = of_table.map(|c| (c.column_name.clone(), c.description.clone())).collect();
        assert_eq!(told, documented, "DESCRIBE {}", table.table_name);
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/tables.md");
    let want = document(&tables, &columns);
    if std::env::var_os("CUSTODY_WRITE_DOCS").is_some() {
        std::fs::write(path, &want).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == want, "docs/tables.md is not what the tables are: run this test with CUSTODY_WRITE_DOCS=1");
}

/// Every table and function answers, also on a log with nothing in it but its genesis.
#[test]
fn every_table_and_function_answers_on_an_empty_log() {
    let server = Server::start();
    let functions = [
        "spans_as_of(0)",
        "logs_as_of('2020-01-01T00:00:00Z')",
        "metrics_as_of(0)",
        "events_as_of(0)",
        "grants_as_of('2020-01-01T00:00:00Z')",
        "denials_as_of(0)",
        "alerts_as_of(0)",
        "alert_history('none')",
        "dwell_time_by('severity', '7d')",
        "coverage_by('team', '24h', '7d')",
        "coverage_by('agent')",
    ];
    for function in functions {
        assert!(server.sql(&format!("SELECT * FROM {function}")).len() <= 1, "{function}");
    }
    for table in server.sql("SELECT table_name FROM custody_tables WHERE kind <> 'function'") {
        server.sql(&format!("SELECT * FROM {}", text(&table, "table_name")));
    }
    assert_eq!(server.sql("SELECT count(*) AS n FROM logs_as_of('2020-01-01T00:00:00Z')")[0]["n"], 0);
    assert_eq!(server.sql("SELECT count(*) AS n FROM logs_as_of(0)")[0]["n"], 1, "the genesis record");
    for (wrong, why) in [
        ("coverage_by('colour')", "severity"),
        ("coverage_by('agent', 'soon')", "24h"),
        ("spans_as_of()", "spans_as_of(seq or time)"),
        ("alert_history(7)", "text"),
    ] {
        let output = server.custody_output(&["sql", &format!("SELECT * FROM {wrong}")]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(why), "{wrong}: {told}");
    }
}
