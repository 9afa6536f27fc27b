-- The views of revision 0006, as fixed text; a statement ends with a semicolon and a line's end.


CREATE VIEW qigstore.curve_buckets AS
SELECT s.name AS session, a.number AS attempt, w.rank, m.name AS metric, c.width, c.start,
       c.low[m.place] AS low, c.high[m.place] AS high, c.mean[m.place] AS mean,
       coalesce(c.finite[m.place], c.rows) AS finite, coalesce(c.nans[m.place], 0) AS nans,
       coalesce(c.infs[m.place], 0) AS infs
FROM qigstore.session s
JOIN qigstore.attempt a ON a.session_id = s.id
JOIN qigstore.writer w ON w.attempt_id = a.id
CROSS JOIN LATERAL (
    SELECT * FROM (VALUES ('loss', 1), ('accuracy', 2), ('grad_norm', 3),
             ('learning_rate', 4), ('phi', 5), ('phi_nats', 6),
             ('kappa_eff', 7), ('basin_distance', 8), ('geodesic_distance', 9),
             ('curvature', 10), ('recursion_depth', 11), ('breakdown_pct', 12),
             ('coherence_drift', 13), ('meta_awareness', 14), ('generativity', 15),
             ('external_coupling', 16), ('grounding', 17), ('temporal_coherence', 18),
             ('fisher_metric_trace', 19)) AS standard (name, place)
    UNION ALL
    SELECT custom.name, 32 + custom.position
    FROM qigstore.metric custom WHERE custom.session_id = s.id
) m
JOIN qigstore.curve c ON c.writer = w.number
WHERE c.low[m.place] IS NOT NULL;
COMMENT ON VIEW qigstore.curve_buckets IS 'Roll-ups by metric: least, greatest and mean value of each closed bucket of steps, at widths that grow by a factor. Filter by session, metric and width; the newest rows are in no closed bucket yet.';
COMMENT ON COLUMN qigstore.curve_buckets.session IS 'Name of the session.';
COMMENT ON COLUMN qigstore.curve_buckets.attempt IS 'Number of the attempt: one process life of the session.';
COMMENT ON COLUMN qigstore.curve_buckets.rank IS 'Rank of the process in a distributed run, from 0.';
COMMENT ON COLUMN qigstore.curve_buckets.metric IS 'Name of the metric, standard or custom.';
COMMENT ON COLUMN qigstore.curve_buckets.width IS 'Steps that a bucket covers.';
COMMENT ON COLUMN qigstore.curve_buckets.start IS 'Its first step.';
COMMENT ON COLUMN qigstore.curve_buckets.low IS 'Of the finite values; NaN where there is none.';
COMMENT ON COLUMN qigstore.curve_buckets.high IS 'Of the finite values; NaN where there is none.';
COMMENT ON COLUMN qigstore.curve_buckets.mean IS 'Of the finite values; NaN where there is none.';
COMMENT ON COLUMN qigstore.curve_buckets.finite IS 'How many values were finite.';
COMMENT ON COLUMN qigstore.curve_buckets.nans IS 'How many were NaN.';
COMMENT ON COLUMN qigstore.curve_buckets.infs IS 'How many were infinite.';

CREATE VIEW qigstore.event_history AS
SELECT s.name AS session, e.raised_at, e.severity, e.rule, e.attempt, e.rank, e.step, e.message,
       e.metric, e.value, e.threshold, e.action,
       e.acknowledged_at IS NULL AND e.resolved_at IS NULL AS open,
       e.detail ->> 'result' AS result, e.acknowledged_at, e.resolved_at, e.checkpoint_id, e.id
FROM qigstore.event e JOIN qigstore.session s ON s.id = e.session_id;
COMMENT ON VIEW qigstore.event_history IS 'Events of each session, one a row: what a rule, a signal or a person raised.';
COMMENT ON COLUMN qigstore.event_history.session IS 'Name of the session.';
COMMENT ON COLUMN qigstore.event_history.step IS 'Step of the row that raised it, if one did.';
COMMENT ON COLUMN qigstore.event_history.action IS 'What followed: abort, checkpoint, soft_reset, or NULL.';
COMMENT ON COLUMN qigstore.event_history.open IS 'Nobody acknowledged it, and nothing resolved it.';
COMMENT ON COLUMN qigstore.event_history.result IS 'What became of it.';
