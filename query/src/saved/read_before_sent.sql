-- title: What did it read before this call?
-- shows: What came into the agent's context in the same trace before a call: results of its earlier calls and what it retrieved, the newest first. Exfiltration and injection are found here.
-- param call seq | The seq of the call that sent something.
-- column seq | The record that shows it.
-- column record_hash | Its content commitment, hex.
-- column event_time | When, as the source says.
-- column kind | tool_call or context_retrieval.
-- column tool | The tool.
-- column resource | What it was done to.
-- column classification | Data classification, where the source tells it.
-- column content | What it read, as the source has it.
-- column sent_before | How long before the call, in ns.
SELECT e.seq, e.record_hash, e.event_time, e.kind, e.tool, e.resource, e.classification,
       coalesce(t.result, r.documents) AS content, greatest(CAST(c.event_time AS BIGINT), 0) - greatest(CAST(e.event_time AS BIGINT), 0) AS sent_before
FROM tool_calls c
JOIN events e ON e.trace_id = c.trace_id AND e.kind IN ('tool_call', 'context_retrieval') AND e.seq <> c.seq
             AND e.event_time < c.event_time
LEFT JOIN tool_calls t ON t.seq = e.seq
LEFT JOIN retrievals r ON r.seq = e.seq
WHERE c.seq = $call
ORDER BY e.event_time DESC, e.seq DESC
