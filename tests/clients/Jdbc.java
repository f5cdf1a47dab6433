// Asks over Arrow Flight SQL with the JDBC driver, as BI tools do: parameters, metadata, types.

import java.sql.Connection;
import java.sql.DatabaseMetaData;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.Statement;
import java.sql.Timestamp;
import java.util.ArrayList;
import java.util.List;

public class Jdbc {
    static void same(Object found, Object wanted) {
        if (!wanted.equals(found)) {
            throw new AssertionError(found + " is not " + wanted);
        }
    }

    public static void main(String[] args) throws Exception {
        String url = "jdbc:arrow-flight-sql://" + args[0] + "?useEncryption=false";
        try (Connection connection = DriverManager.getConnection(url)) {
            String sql = "SELECT count(*) FROM tool_calls WHERE tool = ? AND seq > ? AND event_time > ?";
            try (PreparedStatement asked = connection.prepareStatement(sql)) {
                same(asked.getParameterMetaData().getParameterCount(), 3);
                asked.setString(1, "send_money");
                asked.setLong(2, 0);
                asked.setTimestamp(3, new Timestamp(0));
                try (ResultSet rows = asked.executeQuery()) {
                    rows.next();
                    if (rows.getLong(1) <= 10) {
                        throw new AssertionError("there are more than " + rows.getLong(1));
                    }
                }
                // The same statement again, with other values.
                asked.setString(1, "no such tool");
                try (ResultSet rows = asked.executeQuery()) {
                    rows.next();
                    same(rows.getLong(1), 0L);
                }
            }
            try (PreparedStatement asked = connection.prepareStatement("SELECT count(*) FROM delegation_chain(?)")) {
                asked.setString(1, "grant-9479ff18f11527a5");
                try (ResultSet rows = asked.executeQuery()) {
                    rows.next();
                    same(rows.getLong(1), 2L);
                }
            }
            DatabaseMetaData about = connection.getMetaData();
            same(about.getDatabaseProductName(), "Custody");
            List<String> columns = new ArrayList<>();
            try (ResultSet rows = about.getColumns(null, "public", "grants", "%")) {
                while (rows.next()) {
                    columns.add(rows.getString("COLUMN_NAME"));
                    if (rows.getString("REMARKS").isEmpty()) {
                        throw new AssertionError("no remarks of " + rows.getString("COLUMN_NAME"));
                    }
                }
            }
            same(columns.contains("grant_id"), true);
            // With rows and without, an answer has its columns once, and every value can be read. (Asked by a plain
            // statement, the driver shows those of an answer without rows twice: it passes over batches without rows.)
            for (String where : List.of("true", "false")) {
                String all = "SELECT * FROM grants WHERE " + where;
                try (PreparedStatement asked = connection.prepareStatement(all); ResultSet rows = asked.executeQuery()) {
                    same(rows.getMetaData().getColumnCount(), columns.size());
                    while (rows.next()) {
                        for (int i = 1; i <= columns.size(); i++) {
                            rows.getString(i);
                        }
                        rows.getTimestamp("issued_time");
                    }
                }
            }
            try (Statement asked = connection.createStatement();
                ResultSet rows = asked.executeQuery("SELECT tool, seq, record_hash FROM tool_calls")) {
                same(rows.getMetaData().getColumnCount(), 3);
                int count = 0;
                while (rows.next()) {
                    count++;
                }
                same(count > 10, true);
            }
        }
        System.out.println("ok");
    }
}
