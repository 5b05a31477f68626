-- More transactions and multixacts than one file of CLOG, commit timestamps and multixact offsets holds. What follows in code:
-- everything is frozen, so that these files are cut at the front.
create table burn (id int primary key, n int);
insert into burn select i, 0 from generate_series(1, 10) i;
-- Rows of a temporary table cost ids, but no WAL.
create temporary table burnt (id int);
do $$ begin for n in 1..11 loop for m in 1..100000 loop begin insert into burnt values (m); exception when others then null; end; end loop; commit; end loop; end $$;
--@ session a
begin;
select * from burn where id = 1 for key share;
--@ session main
do $$ begin for n in 1..14 loop for m in 1..5000 loop begin perform 1 from burn where id = 1 for share; raise exception 'next'; exception when raise_exception then null; end; end loop; commit; end loop; end $$;
--@ session a
commit;
