-- GiST: splits, deletes, buffered build, page deletion and reuse, dead entries removed on insert.
create table gi (p point, r int4range);
create index gi_p on gi using gist (p);
create index gi_r on gi using gist (r);
insert into gi select point(i % 100, (i * 7) % 103), int4range(i, i + 10) from generate_series(1, 4000) i;
delete from gi where p[0] < 60;
vacuum gi;
insert into gi select point(i, i), int4range(i, i + 1) from generate_series(1, 1500) i;
delete from gi;
vacuum gi;
select count(txid_current()) from generate_series(1, 1);
vacuum gi;
insert into gi select point(i, i), int4range(i, i + 1) from generate_series(1, 3000) i;
-- Dead entries that a reader marked are removed by the insert that needs room.
create table killed (k int, p point) with (autovacuum_enabled = off);
create index killed_p on killed using gist (p);
insert into killed select i % 4, point(i % 7, i % 11) from generate_series(1, 1500) i;
delete from killed where p[0] < 5;
set enable_seqscan = off;
set enable_bitmapscan = off;
select count(*) from killed where p <@ box '((-1,-1),(20,20))';
select count(*) from killed where p <@ box '((-1,-1),(20,20))';
insert into killed select i % 4, point(i % 7, i % 11) from generate_series(1, 3000) i;
reset enable_seqscan;
reset enable_bitmapscan;
-- Full text (signatures), an exclusion constraint, buffered build.
create table ft (d tsvector);
create index ft_d on ft using gist (d);
insert into ft select to_tsvector('simple', md5(i::text) || ' w' || (i % 30)) from generate_series(1, 1500) i;
create table excluded_ranges (r int4range, exclude using gist (r with &&));
insert into excluded_ranges select int4range(i * 10, i * 10 + 5) from generate_series(1, 1000) i;
create table buffered as select point(random() * 1000, random() * 1000) p from generate_series(1, 8000) i;
create index buffered_p on buffered using gist (p) with (buffering = on);
insert into buffered select point(random() * 1000, random() * 1000) from generate_series(1, 2000) i;
