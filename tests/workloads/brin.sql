-- BRIN: min-max, bloom and multi-range summaries; moved within and between pages, revmap growth, desummarising.
create table br (a int, b int, pad text) with (fillfactor = 50);
create index br_a on br using brin (a) with (pages_per_range = 2, autosummarize = off);
create index br_b on br using brin (b int4_bloom_ops) with (pages_per_range = 1);
create index br_mm on br using brin (a int4_minmax_multi_ops) with (pages_per_range = 1);
insert into br select i, i % 97, repeat('p', 100) from generate_series(1, 4000) i;
select brin_summarize_new_values('br_a'), brin_summarize_new_values('br_b'), brin_summarize_new_values('br_mm');
update br set a = a + 100000 where a % 50 = 0;
insert into br select i, i % 997, repeat('p', 100) from generate_series(5000, 8000) i;
vacuum br;
select brin_desummarize_range('br_a', 4), brin_desummarize_range('br_b', 3);
select brin_summarize_range('br_a', 4);
delete from br where a % 2 = 0;
vacuum br;
update br set a = -a where a % 3 = 0;
-- Text summaries that grow: the tuple no longer fits where it is.
create table grows (t text);
alter table grows alter t set storage plain;
create index grows_t on grows using brin (t) with (pages_per_range = 1);
insert into grows select 'm' from generate_series(1, 3000) i;
select brin_summarize_new_values('grows_t');
update grows set t = repeat('z', 800) where ctid in (select ctid from grows limit 500);
update grows set t = repeat('a', 1200) where ctid in (select ctid from grows where t = 'm' limit 500);
vacuum grows;
-- Many ranges: the revmap takes another page.
create table long_one (a int, pad text) with (fillfactor = 10);
create index long_one_a on long_one using brin (a) with (pages_per_range = 1);
insert into long_one select i, repeat('x', 700) from generate_series(1, 3000) i;
vacuum long_one;
