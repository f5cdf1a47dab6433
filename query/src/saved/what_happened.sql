-- title: What happened, step by step?
-- shows: Every step in causal order, with markers where evidence is missing: of a trace, grant, agent, conversation or alert.
-- param id text | A trace, grant, agent, conversation or alert id.
-- param as_of text = null | What the ledger knew at this seq or time.
-- column step | Place in the replay.
-- column depth | How deep it stands in the tree.
-- column event_time | When, as the source says.
-- column kind | The kind of step, missing for a marker.
-- column agent_id | The agent.
-- column grant_id | The grant.
-- column tool | The tool.
-- column resource | What it was done to.
-- column decision | allow, deny and the like.
-- column status | ok, error or unset.
-- column missing | What evidence is missing here.
-- column note | What else is to be said.
-- column seq | The record that shows it.
-- column record_hash | Its content commitment, hex.
SELECT step, depth, event_time, kind, agent_id, grant_id, tool, resource, decision, status, missing, note, seq, record_hash
FROM replay($id, $as_of)
ORDER BY step
