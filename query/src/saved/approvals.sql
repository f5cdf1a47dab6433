-- title: What did people approve or reject?
-- shows: Decisions that a person made, about what, and on which record they stand.
-- param from time = null | Only what happened at this time or later.
-- param to time = null | Only what happened before this time.
-- column seq | The record that shows it.
-- column record_hash | Its content commitment, hex.
-- column event_time | When, as the source says.
-- column decided_by | The person.
-- column decision | What was decided.
-- column agent_id | The agent.
-- column action | The action.
-- column resource | What it was done to.
-- column reasons | Why.
-- column trace_id | Trace.
SELECT seq, record_hash, event_time, decided_by, decision, agent_id, action, resource, reasons, trace_id
FROM decisions
WHERE by_person AND ($from IS NULL OR event_time >= CAST($from AS TIMESTAMP)) AND ($to IS NULL OR event_time < CAST($to AS TIMESTAMP))
ORDER BY event_time, seq
