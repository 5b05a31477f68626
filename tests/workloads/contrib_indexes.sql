-- Operator classes of extensions over GIN and GiST: other tuple shapes, same WAL records.
--@ requires extension pg_trgm
--@ requires extension btree_gist
--@ requires extension btree_gin
create table words (id int, w text, n numeric);
create index words_trgm_gin on words using gin (w public.gin_trgm_ops);
create index words_trgm_gist on words using gist (w public.gist_trgm_ops);
create index words_btree_gist on words using gist (id, n);
create index words_btree_gin on words using gin (id, n);
insert into words select i, md5(i::text) || ' word ' || i % 30, i * 1.5 from generate_series(1, 1500) i;
update words set w = reverse(w) where id % 4 = 0;
delete from words where id % 3 = 0;
vacuum words;
insert into words select i, 'again ' || i, i from generate_series(1, 500) i;
