-- The views of revision 0004, as fixed text; a statement ends with a semicolon and a line's end.


CREATE VIEW qigstore.all_telemetry AS
SELECT s.name AS session, w.attempt, w.rank, t.step, t.recorded_at,
       CASE t.regime WHEN 0 THEN 'linear'
            WHEN 1 THEN 'geometric'
            WHEN 2 THEN 'hyperdimensional'
            WHEN 3 THEN 'topological_instability'
       END AS regime,
       t.loss, t.accuracy, t.grad_norm, t.learning_rate, t.phi,
       t.phi_nats, t.kappa_eff, t.basin_distance, t.geodesic_distance, t.curvature,
       t.recursion_depth, t.breakdown_pct, t.coherence_drift, t.meta_awareness, t.generativity,
       t.external_coupling, t.grounding, t.temporal_coherence, t.fisher_metric_trace,
       nullif((
           ARRAY[t.custom_1, t.custom_2, t.custom_3, t.custom_4, t.custom_5, t.custom_6,
               t.custom_7, t.custom_8, t.custom_9, t.custom_10, t.custom_11, t.custom_12,
               t.custom_13, t.custom_14, t.custom_15, t.custom_16] || t.custom_more
       )[:CASE WHEN t.custom_more IS NOT NULL THEN 16 + cardinality(t.custom_more)
               WHEN t.custom_16 IS NOT NULL THEN 16 WHEN t.custom_15 IS NOT NULL THEN 15
               WHEN t.custom_14 IS NOT NULL THEN 14 WHEN t.custom_13 IS NOT NULL THEN 13
               WHEN t.custom_12 IS NOT NULL THEN 12 WHEN t.custom_11 IS NOT NULL THEN 11
               WHEN t.custom_10 IS NOT NULL THEN 10 WHEN t.custom_9 IS NOT NULL THEN 9
               WHEN t.custom_8 IS NOT NULL THEN 8 WHEN t.custom_7 IS NOT NULL THEN 7
               WHEN t.custom_6 IS NOT NULL THEN 6 WHEN t.custom_5 IS NOT NULL THEN 5
               WHEN t.custom_4 IS NOT NULL THEN 4 WHEN t.custom_3 IS NOT NULL THEN 3
               WHEN t.custom_2 IS NOT NULL THEN 2 WHEN t.custom_1 IS NOT NULL THEN 1
               ELSE 0 END], '{}') AS custom,
       coalesce(t.seq, t.step + w.seq_less_step) AS seq, s.id AS session_id
FROM qigstore.session s
JOIN (SELECT a.session_id, a.number AS attempt, w.rank, w.number, w.seq_less_step
      FROM qigstore.attempt a JOIN qigstore.writer w ON w.attempt_id = a.id) w
  ON w.session_id = s.id
JOIN qigstore.telemetry t ON t.writer = w.number;
COMMENT ON VIEW qigstore.all_telemetry IS 'Every row of every attempt and rank. Filter by session.';
COMMENT ON COLUMN qigstore.all_telemetry.session IS 'Name of the session.';
COMMENT ON COLUMN qigstore.all_telemetry.attempt IS 'Number of the attempt: one process life of the session.';
COMMENT ON COLUMN qigstore.all_telemetry.rank IS 'Rank of the process in a distributed run, from 0.';
COMMENT ON COLUMN qigstore.all_telemetry.recorded_at IS 'When record() was called, by the clock of its machine.';
COMMENT ON COLUMN qigstore.all_telemetry.regime IS 'linear, geometric, hyperdimensional, topological_instability, or NULL.';
COMMENT ON COLUMN qigstore.all_telemetry.custom IS 'Custom metrics by position; telemetry_metric shows them by name.';
COMMENT ON COLUMN qigstore.all_telemetry.seq IS 'Number of the record among those of its writer: the true order.';

CREATE VIEW qigstore.canonical_telemetry AS
SELECT s.name AS session, w.attempt, w.rank, t.step,
       coalesce(t.step > w.resumed_step, false) AS abandoned, t.recorded_at,
       CASE t.regime WHEN 0 THEN 'linear'
            WHEN 1 THEN 'geometric'
            WHEN 2 THEN 'hyperdimensional'
            WHEN 3 THEN 'topological_instability'
       END AS regime,
       t.loss, t.accuracy, t.grad_norm, t.learning_rate, t.phi,
       t.phi_nats, t.kappa_eff, t.basin_distance, t.geodesic_distance, t.curvature,
       t.recursion_depth, t.breakdown_pct, t.coherence_drift, t.meta_awareness, t.generativity,
       t.external_coupling, t.grounding, t.temporal_coherence, t.fisher_metric_trace,
       nullif((
           ARRAY[t.custom_1, t.custom_2, t.custom_3, t.custom_4, t.custom_5, t.custom_6,
               t.custom_7, t.custom_8, t.custom_9, t.custom_10, t.custom_11, t.custom_12,
               t.custom_13, t.custom_14, t.custom_15, t.custom_16] || t.custom_more
       )[:CASE WHEN t.custom_more IS NOT NULL THEN 16 + cardinality(t.custom_more)
               WHEN t.custom_16 IS NOT NULL THEN 16 WHEN t.custom_15 IS NOT NULL THEN 15
               WHEN t.custom_14 IS NOT NULL THEN 14 WHEN t.custom_13 IS NOT NULL THEN 13
               WHEN t.custom_12 IS NOT NULL THEN 12 WHEN t.custom_11 IS NOT NULL THEN 11
               WHEN t.custom_10 IS NOT NULL THEN 10 WHEN t.custom_9 IS NOT NULL THEN 9
               WHEN t.custom_8 IS NOT NULL THEN 8 WHEN t.custom_7 IS NOT NULL THEN 7
               WHEN t.custom_6 IS NOT NULL THEN 6 WHEN t.custom_5 IS NOT NULL THEN 5
               WHEN t.custom_4 IS NOT NULL THEN 4 WHEN t.custom_3 IS NOT NULL THEN 3
               WHEN t.custom_2 IS NOT NULL THEN 2 WHEN t.custom_1 IS NOT NULL THEN 1
               ELSE 0 END], '{}') AS custom,
       coalesce(t.seq, t.step + w.seq_less_step) AS seq, s.id AS session_id
FROM qigstore.session s
CROSS JOIN LATERAL (
    SELECT a.number AS attempt, w.rank, w.number, w.seq_less_step,
           (SELECT min(l.resumed_step)
            FROM qigstore.attempt l
            WHERE l.session_id = a.session_id AND l.number > a.number) AS resumed_step,
           later.reached, later.writers
    FROM qigstore.attempt a JOIN qigstore.writer w ON w.attempt_id = a.id
    CROSS JOIN LATERAL (
        SELECT range_agg(int8range(lw.min_step, lw.max_step, '[]')) AS reached,
               array_agg(lw.number) AS writers
        FROM qigstore.attempt l JOIN qigstore.writer lw ON lw.attempt_id = l.id
        WHERE l.session_id = a.session_id AND l.number > a.number
          AND lw.rank = w.rank AND lw.max_step IS NOT NULL
    ) later
    WHERE a.session_id = s.id AND w.max_step IS NOT NULL
    OFFSET 0
) w
JOIN qigstore.telemetry t ON t.writer = w.number
WHERE w.reached IS NULL OR NOT w.reached @> t.step OR NOT EXISTS (
    SELECT FROM qigstore.telemetry n WHERE n.writer = ANY (w.writers) AND n.step = t.step
);
COMMENT ON VIEW qigstore.canonical_telemetry IS 'The timeline of a session: for each rank and step the newest attempt that reached it. Filter by session.';
COMMENT ON COLUMN qigstore.canonical_telemetry.session IS 'Name of the session.';
COMMENT ON COLUMN qigstore.canonical_telemetry.attempt IS 'Number of the attempt: one process life of the session.';
COMMENT ON COLUMN qigstore.canonical_telemetry.rank IS 'Rank of the process in a distributed run, from 0.';
COMMENT ON COLUMN qigstore.canonical_telemetry.recorded_at IS 'When record() was called, by the clock of its machine.';
COMMENT ON COLUMN qigstore.canonical_telemetry.regime IS 'linear, geometric, hyperdimensional, topological_instability, or NULL.';
COMMENT ON COLUMN qigstore.canonical_telemetry.custom IS 'Custom metrics by position; telemetry_metric shows them by name.';
COMMENT ON COLUMN qigstore.canonical_telemetry.seq IS 'Number of the record among those of its writer: the true order.';
COMMENT ON COLUMN qigstore.canonical_telemetry.abandoned IS 'A later attempt resumed before this step and did not reach it.';

CREATE VIEW qigstore.latest_telemetry AS
SELECT s.name AS session, w.attempt, w.rank, t.step, t.recorded_at,
       CASE t.regime WHEN 0 THEN 'linear'
            WHEN 1 THEN 'geometric'
            WHEN 2 THEN 'hyperdimensional'
            WHEN 3 THEN 'topological_instability'
       END AS regime,
       t.loss, t.accuracy, t.grad_norm, t.learning_rate, t.phi,
       t.phi_nats, t.kappa_eff, t.basin_distance, t.geodesic_distance, t.curvature,
       t.recursion_depth, t.breakdown_pct, t.coherence_drift, t.meta_awareness, t.generativity,
       t.external_coupling, t.grounding, t.temporal_coherence, t.fisher_metric_trace,
       nullif((
           ARRAY[t.custom_1, t.custom_2, t.custom_3, t.custom_4, t.custom_5, t.custom_6,
               t.custom_7, t.custom_8, t.custom_9, t.custom_10, t.custom_11, t.custom_12,
               t.custom_13, t.custom_14, t.custom_15, t.custom_16] || t.custom_more
       )[:CASE WHEN t.custom_more IS NOT NULL THEN 16 + cardinality(t.custom_more)
               WHEN t.custom_16 IS NOT NULL THEN 16 WHEN t.custom_15 IS NOT NULL THEN 15
               WHEN t.custom_14 IS NOT NULL THEN 14 WHEN t.custom_13 IS NOT NULL THEN 13
               WHEN t.custom_12 IS NOT NULL THEN 12 WHEN t.custom_11 IS NOT NULL THEN 11
               WHEN t.custom_10 IS NOT NULL THEN 10 WHEN t.custom_9 IS NOT NULL THEN 9
               WHEN t.custom_8 IS NOT NULL THEN 8 WHEN t.custom_7 IS NOT NULL THEN 7
               WHEN t.custom_6 IS NOT NULL THEN 6 WHEN t.custom_5 IS NOT NULL THEN 5
               WHEN t.custom_4 IS NOT NULL THEN 4 WHEN t.custom_3 IS NOT NULL THEN 3
               WHEN t.custom_2 IS NOT NULL THEN 2 WHEN t.custom_1 IS NOT NULL THEN 1
               ELSE 0 END], '{}') AS custom,
       coalesce(t.seq, t.step + w.seq_less_step) AS seq, s.id AS session_id
FROM qigstore.session s
CROSS JOIN LATERAL (
    SELECT a.number AS attempt, w.rank, w.number, w.seq_less_step
    FROM qigstore.attempt a JOIN qigstore.writer w ON w.attempt_id = a.id
    WHERE a.session_id = s.id AND w.max_step IS NOT NULL
    ORDER BY a.number DESC, w.rank LIMIT 1
) w
CROSS JOIN LATERAL (
    SELECT * FROM qigstore.telemetry r WHERE r.writer = w.number ORDER BY r.step DESC LIMIT 1
) t;
COMMENT ON VIEW qigstore.latest_telemetry IS 'For each session the greatest step of its newest attempt that stored any.';
COMMENT ON COLUMN qigstore.latest_telemetry.session IS 'Name of the session.';
COMMENT ON COLUMN qigstore.latest_telemetry.attempt IS 'Number of the attempt: one process life of the session.';
COMMENT ON COLUMN qigstore.latest_telemetry.rank IS 'Rank of the process in a distributed run, from 0.';
COMMENT ON COLUMN qigstore.latest_telemetry.recorded_at IS 'When record() was called, by the clock of its machine.';
COMMENT ON COLUMN qigstore.latest_telemetry.regime IS 'linear, geometric, hyperdimensional, topological_instability, or NULL.';
COMMENT ON COLUMN qigstore.latest_telemetry.custom IS 'Custom metrics by position; telemetry_metric shows them by name.';
COMMENT ON COLUMN qigstore.latest_telemetry.seq IS 'Number of the record among those of its writer: the true order.';

CREATE VIEW qigstore.telemetry_metric AS
SELECT s.name AS session, a.number AS attempt, w.rank, t.step, m.name, v.value
FROM qigstore.session s
JOIN qigstore.metric m ON m.session_id = s.id
JOIN qigstore.attempt a ON a.session_id = s.id
JOIN qigstore.writer w ON w.attempt_id = a.id
JOIN qigstore.telemetry t ON t.writer = w.number
CROSS JOIN LATERAL (
    SELECT CASE m.position
           WHEN 1 THEN t.custom_1 WHEN 2 THEN t.custom_2 WHEN 3 THEN t.custom_3
           WHEN 4 THEN t.custom_4 WHEN 5 THEN t.custom_5 WHEN 6 THEN t.custom_6
           WHEN 7 THEN t.custom_7 WHEN 8 THEN t.custom_8 WHEN 9 THEN t.custom_9
           WHEN 10 THEN t.custom_10 WHEN 11 THEN t.custom_11 WHEN 12 THEN t.custom_12
           WHEN 13 THEN t.custom_13 WHEN 14 THEN t.custom_14 WHEN 15 THEN t.custom_15
           WHEN 16 THEN t.custom_16
           ELSE t.custom_more[m.position - 16] END AS value
) v
WHERE v.value IS NOT NULL;
COMMENT ON VIEW qigstore.telemetry_metric IS 'Custom metrics by name, one row a value. Filter by session and name.';
COMMENT ON COLUMN qigstore.telemetry_metric.session IS 'Name of the session.';
COMMENT ON COLUMN qigstore.telemetry_metric.attempt IS 'Number of the attempt: one process life of the session.';
COMMENT ON COLUMN qigstore.telemetry_metric.rank IS 'Rank of the process in a distributed run, from 0.';
COMMENT ON COLUMN qigstore.telemetry_metric.name IS 'Name of the metric.';
COMMENT ON COLUMN qigstore.telemetry_metric.value IS 'What was recorded; NaN where that was NaN.';
