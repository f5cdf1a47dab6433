-- title: Which evidence is missing?
-- shows: Where the ledger knows that something was never received, or cannot decide for lack of it.
-- param trace text = null | Only of this trace.
-- column check_id | The check that found it.
-- column verdict | proven, probable or undecidable.
-- column severity | How bad it is.
-- column seq | The record that shows it.
-- column trace_id | Trace.
-- column grant_id | The grant.
-- column agent_id | The agent.
-- column detail | What was found, in words.
-- column evidence | Seqs of the records that show it.
SELECT check_id, verdict, severity, seq, trace_id, grant_id, agent_id, detail, evidence
FROM violations
WHERE (verdict = 'undecidable' OR check_id IN ('broken_lineage', 'unknown_grant', 'missing_hop', 'orphan_span', 'sequence_gap',
       'silent_source', 'truncated', 'sampled_trace', 'call_without_result', 'result_without_call', 'grant_without_evaluation',
       'approval_missing', 'unattributed'))
  AND ($trace IS NULL OR trace_id = $trace)
ORDER BY seq, check_id
