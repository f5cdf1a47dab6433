//! The checks: each a SQL file whose head names its severity and its tags. Their
//! union is the table `violations`.

/// One check.
pub struct Check {
    /// Its stable id.
    pub id: &'static str,
    /// Its definition.
    pub sql: &'static str,
}

macro_rules! checks {
    ($($id:literal),+ $(,)?) => {
        /// All checks that there are.
        pub const CHECKS: &[Check] = &[$(Check { id: $id, sql: include_str!(concat!("checks/", $id, ".sql")) }),+];
    };
}

checks!(
    "unknown_grant",
    "expired_grant",
    "revoked_grant",
    "outside_actions",
    "outside_resources",
    "widened_delegation",
    "denied_then_executed",
    "broken_lineage",
);

impl Check {
    /// A line of the file's head, such as `tags`.
    fn head(&self, name: &str) -> &'static str {
        let lines = self.sql.lines().take_while(|line| line.starts_with("--"));
        let value = lines.filter_map(|line| line[2..].trim().strip_prefix(name)?.strip_prefix(": ")).next();
        value.unwrap_or_default()
    }

    /// The frameworks' names for what it finds (OWASP Agentic, MITRE ATLAS).
    pub fn tags(&self) -> Vec<&'static str> {
        self.head("tags").split(", ").filter(|tag| !tag.is_empty()).collect()
    }

    /// How bad a hit is.
    pub fn severity(&self) -> &'static str {
        self.head("severity")
    }
}

/// The query behind the table `violations`.
pub fn violations_sql() -> String {
    let each = CHECKS.iter().map(|check| {
        let tags: Vec<String> = check.tags().iter().map(|tag| format!("'{tag}'")).collect();
        format!(
            "SELECT check_id, verdict, severity, seq, trace_id, span_id, grant_id, agent_id, detail, evidence, \
             make_array({}) AS tags, detected_time FROM (\n{})",
            tags.join(", "),
            check.sql
        )
    });
    let union = each.collect::<Vec<_>>().join("\nUNION ALL\n");
    // An alert that cites a record and names the check is the alert of that violation.
    format!(
        "SELECT v.*, a.alert_id FROM ({union}) v LEFT JOIN \
         (SELECT rule, unnest(evidence) AS cited, min(alert_id) AS alert_id FROM alerts GROUP BY rule, cited) a \
         ON a.rule = v.check_id AND a.cited = v.seq"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_names_its_severity_and_tags() {
        for check in CHECKS {
            assert!(["low", "medium", "high", "critical"].contains(&check.severity()), "{}", check.id);
            assert!(check.tags().iter().any(|tag| tag.starts_with("OWASP ASI")), "{}", check.id);
            assert!(check.sql.contains(&format!("'{}' AS check_id", check.id)), "{}", check.id);
            assert!(check.sql.contains(&format!("'{}' AS severity", check.severity())), "{}", check.id);
        }
    }
}
