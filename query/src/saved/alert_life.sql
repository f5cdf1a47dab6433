-- title: What was done about this alert?
-- shows: Every record about one alert, by whom, and whether it counts as a person's act.
-- param alert text | The alert id.
-- column seq | The record that shows it.
-- column record_hash | Its content commitment, hex.
-- column event_time | When, as the source says.
-- column act | raised, acknowledged, opened, note, closed and the like.
-- column actor | Who did it, as the record says.
-- column actor_type | human, automation and the like.
-- column counts | Whether it is taken as a person's act.
-- column why_not | Why it is not.
-- column disposition | Disposition of a closing.
-- column note | What was said.
SELECT seq, record_hash, event_time, act, actor, actor_type, counts, why_not, disposition, note
FROM alert_history($alert)
ORDER BY seq
