-- title: What was refused and done all the same?
-- shows: Each call that was executed although it had been refused, with its arguments and result.
-- column seq | The record that shows it.
-- column event_time | When, as the source says.
-- column agent_id | The agent.
-- column tool | The tool.
-- column resource | What it was done to.
-- column arguments | Arguments of the call, as the source has them.
-- column result | The result, as the source has it.
-- column grant_id | The grant.
-- column detail | What was found, in words.
-- column evidence | Seqs of the records that show it.
-- column trace_id | Trace.
SELECT c.seq, c.event_time, c.agent_id, c.tool, c.resource, c.arguments, c.result, c.grant_id, v.detail, v.evidence, c.trace_id
FROM violations v JOIN tool_calls c ON c.seq = v.seq
WHERE v.check_id = 'denied_then_executed'
ORDER BY c.event_time, c.seq
