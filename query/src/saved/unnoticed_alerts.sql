-- title: Which alerts has nobody noticed?
-- shows: Alerts that no person has acknowledged, looked into or closed, the longest waiting first; what automation suppressed stays here, what was taken back or replaced does not.
-- column alert_id | The alert.
-- column rule | The rule or check that fired.
-- column title | What it says.
-- column severity | How bad it is.
-- column agent_id | The agent.
-- column raised_time | When it was raised.
-- column waiting_seconds | For how long nobody has noticed.
-- column state | Its present state.
-- column evidence | Seqs of the records that show it.
-- column seq | The record that shows it.
SELECT alert_id, rule, title, severity, agent_id, raised_time,
       (CAST(now() AS BIGINT) - greatest(CAST(raised_time AS BIGINT), 0)) / 1000000000 AS waiting_seconds, state, evidence, seq
FROM alerts
WHERE acknowledged_time IS NULL AND investigation_opened_time IS NULL AND closed_time IS NULL AND superseded_time IS NULL
ORDER BY raised_time, seq
