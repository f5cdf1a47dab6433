-- title: How far did this agent get, and how far could it have got?
-- shows: Between two verifications of an agent or identity: what it reached, and what its grants would have allowed.
-- param subject text | The agent or identity.
-- column subject_type | agent or identity.
-- column window_start | When it was verified, null for before it ever was.
-- column window_end | When it was verified next.
-- column requests | Accepted requests.
-- column reached_tools | Tools that it used.
-- column reached_resources | Resources that it reached.
-- column potential_actions | Patterns of actions that its grants allowed.
-- column potential_resources | Patterns of resources that they allowed.
-- column potential_unlimited | Whether one of them did not limit resources.
-- column verified_seq | The record of the verification.
SELECT subject_type, window_start, window_end, requests, reached_tools, reached_resources, potential_actions,
       potential_resources, potential_unlimited, verified_seq
FROM blast_radius
WHERE subject = $subject
ORDER BY window_start NULLS FIRST
