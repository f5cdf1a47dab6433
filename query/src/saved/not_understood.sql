-- title: What is not understood?
-- shows: What senders sent that no mapping reads: it is kept and proved, but no check sees it.
-- column service | The service, by its own claim.
-- column scope | Instrumentation scope.
-- column signal | span or log.
-- column records | Records of it.
-- column unmapped | Those that no mapping reads.
-- column share | Share that is read.
-- column not_understood | Names of what is not, the most frequent first.
SELECT service, scope, signal, records, unmapped, share, not_understood
FROM coverage_of_mapping
WHERE unmapped > 0
ORDER BY unmapped DESC, service, scope, signal
