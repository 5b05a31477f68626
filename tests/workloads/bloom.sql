-- Bloom: an access method of an extension, logged with generic WAL records.
--@ requires extension bloom
create table bl (a int, b int, t text);
create index bl_i on bl using bloom (a, b, t) with (length = 80, col1 = 2, col2 = 4, col3 = 3);
insert into bl select i, i % 100, md5(i::text) from generate_series(1, 3000) i;
delete from bl where a % 3 = 0;
vacuum bl;
insert into bl select i, 1, 'q' from generate_series(1, 500) i;
update bl set b = 3 where a < 200;
vacuum bl;
delete from bl;
vacuum bl;
insert into bl select i, 2, 'r' from generate_series(1, 1500) i;
reindex index bl_i;
