-- title: What changed in policy?
-- shows: Each version of each policy that decided something: when it first and last did, and how often it allowed and refused. A new row is a new version in use.
-- param from time = null | Only what happened at this time or later.
-- param to time = null | Only what happened before this time.
-- column policy_id | The policy.
-- column policy_version | Its version.
-- column first_time | First decision.
-- column last_time | Last decision.
-- column allowed | How often it allowed.
-- column refused | How often it refused.
-- column seq | The first decision by it.
SELECT policy_id, policy_version, min(event_time) AS first_time, max(event_time) AS last_time,
       sum(CASE WHEN decision IN ('allow', 'approved') THEN 1 ELSE 0 END) AS allowed,
       sum(CASE WHEN decision IN ('deny', 'rejected') THEN 1 ELSE 0 END) AS refused, min(seq) AS seq
FROM decisions
WHERE policy_id IS NOT NULL AND ($from IS NULL OR event_time >= CAST($from AS TIMESTAMP)) AND ($to IS NULL OR event_time < CAST($to AS TIMESTAMP))
GROUP BY policy_id, policy_version
ORDER BY policy_id, first_time, policy_version
