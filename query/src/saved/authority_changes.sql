-- title: Who changed who may do what?
-- shows: Changes of authority that were not grants: roles, members, policies and modes, by whom and to what.
-- param from time = null | Only what happened at this time or later.
-- param to time = null | Only what happened before this time.
-- column seq | The record that shows it.
-- column record_hash | Its content commitment, hex.
-- column event_time | When, as the source says.
-- column initiator_id | Who changed it.
-- column agent_id | Whom it is about.
-- column action | What was changed.
-- column resource | Of what.
-- column decision | What it is now.
-- column reasons | Why.
-- column trace_id | Trace.
SELECT seq, record_hash, event_time, initiator_id, agent_id, action, resource, decision, reasons, trace_id
FROM events
WHERE kind = 'authority_change' AND ($from IS NULL OR event_time >= CAST($from AS TIMESTAMP)) AND ($to IS NULL OR event_time < CAST($to AS TIMESTAMP))
ORDER BY event_time, seq
