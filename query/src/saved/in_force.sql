-- title: Which authority is in force?
-- shows: Grants that were given by a time, had not expired and were not revoked then; now, if no time is given. What was derived from a grant that was refused, or breaks the model's rules, is not in force.
-- param at time = null | At this time.
-- column grant_id | The grant.
-- column root_grant_id | The first grant of its chain.
-- column depth | Derivations from the root grant.
-- column issuer | Who gave the grant.
-- column subject | The agent that it was given to.
-- column initiator_id | For whom it was given.
-- column actions | Patterns of actions that the grant allows.
-- column resources | Patterns of resources that it allows; null if they are not limited.
-- column expires_at | End of validity, null if it has none.
-- column uses | Tool calls that named it, by now.
-- column seq | The record that issued it.
-- column record_hash | Its content commitment, hex.
SELECT grant_id, root_grant_id, depth, issuer, subject, initiator_id, actions, resources, expires_at, uses,
       issued_seq AS seq, record_hash
FROM (SELECT *, coalesce(CAST($at AS TIMESTAMP), now()) AS at FROM grants)
WHERE state NOT IN ('denied', 'invalid') AND lineage NOT IN ('refused', 'invalid') AND issued_time <= at AND (not_before IS NULL OR not_before <= at)
  AND (expires_at IS NULL OR expires_at > at) AND (revoked_time IS NULL OR revoked_time > at)
ORDER BY expires_at NULLS FIRST, grant_id
