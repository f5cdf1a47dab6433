-- title: Which calls went beyond their authority?
-- shows: Calls without a grant, outside it, after its end or although refused, the worst first.
-- param trace text = null | Only of this trace.
-- param agent text = null | Only of this agent.
-- column check_id | The check that found it.
-- column severity | How bad it is.
-- column verdict | proven, probable or undecidable.
-- column seq | The record that shows it.
-- column trace_id | Trace.
-- column agent_id | The agent.
-- column grant_id | The grant.
-- column detail | What was found, in words.
-- column evidence | Seqs of the records that show it.
SELECT check_id, severity, verdict, seq, trace_id, agent_id, grant_id, detail, evidence
FROM violations
WHERE check_id IN ('no_grant', 'unknown_grant', 'expired_grant', 'revoked_grant', 'not_yet_valid', 'outside_actions',
                   'outside_resources', 'outside_constraints', 'over_used', 'wrong_subject', 'wrong_audience',
                   'denied_then_executed', 'widened_delegation', 'executor_bypass', 'mode_bypass', 'replayed_grant')
  AND ($trace IS NULL OR trace_id = $trace) AND ($agent IS NULL OR agent_id = $agent)
ORDER BY CASE severity WHEN 'critical' THEN 0 WHEN 'high' THEN 1 WHEN 'medium' THEN 2 ELSE 3 END, seq, check_id
