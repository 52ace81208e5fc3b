"""Functions of PostgreSQL that a statement may call and still be a read: they change nothing, run no other statement,
and their result is the same at every server that has the same data.

All of them are immutable or stable, in every form that the name has (a test asks PostgreSQL). Left out though stable:
what tells of the server or of its sessions (version, pg_backend_pid, inet_server_addr, pg_is_in_recovery,
current_setting, the catalog's own functions), and what runs a text as a statement (query_to_xml, ts_stat).
"""

from __future__ import annotations

_AGGREGATES = """
    any_value array_agg avg bit_and bit_or bit_xor bool_and bool_or count every json_agg json_object_agg
    jsonb_agg jsonb_object_agg max min range_agg range_intersect_agg string_agg sum corr covar_pop covar_samp
    regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy stddev
    stddev_pop stddev_samp variance var_pop var_samp mode percentile_cont percentile_disc rank dense_rank
    percent_rank cume_dist row_number ntile lag lead first_value last_value nth_value
"""
_NUMBERS = """
    abs cbrt ceil ceiling degrees div erf erfc exp factorial floor gcd lcm ln log log10 min_scale mod pi power
    radians round scale sign sqrt trim_scale trunc width_bucket acos acosd asin asind atan atand atan2 atan2d
    cos cosd cot cotd sin sind tan tand sinh cosh tanh asinh acosh atanh numeric float8 float4 int2 int4 int8
    int2mod int4mod to_number isfinite
"""
_TEXTS = """
    ascii bit_length btrim char_length character_length chr concat concat_ws decode encode format initcap left
    length lower lpad ltrim md5 normalize is_normalized octet_length overlay parse_ident position quote_ident
    quote_literal quote_nullable regexp_count regexp_instr regexp_like regexp_match regexp_matches
    regexp_replace regexp_split_to_array regexp_split_to_table regexp_substr repeat replace reverse right rpad
    rtrim split_part starts_with string_to_array string_to_table strpos substr substring to_hex translate upper
    like like_escape similar_escape similar_to_escape notlike sha224 sha256 sha384 sha512 get_bit get_byte
    set_bit set_byte bit_count convert convert_from convert_to to_ascii text varchar bpchar
"""
_TIMES = """
    age date date_bin date_part date_trunc extract justify_days justify_hours justify_interval make_date
    make_interval make_time make_timestamp make_timestamptz now statement_timestamp transaction_timestamp
    timezone to_char to_date to_timestamp timestamp timestamptz interval overlaps date_add date_subtract
"""
_COMPOSITES = """
    array_append array_cat array_dims array_fill array_length array_lower array_ndims array_position
    array_positions array_prepend array_remove array_replace array_to_string array_upper cardinality trim_array
    unnest generate_series generate_subscripts isempty lower_inc lower_inf upper_inc upper_inf range_merge
    multirange int4range int8range numrange tsrange tstzrange daterange int4multirange int8multirange
    nummultirange tsmultirange tstzmultirange datemultirange num_nonnulls num_nulls area box center circle
    diagonal diameter height isclosed isopen line lseg npoints path pclose point polygon popen radius slope
    width abbrev broadcast family host hostmask inet_merge inet_same_family masklen netmask network set_masklen
    macaddr8_set7bit array_sort array_reverse
"""
_DOCUMENTS = """
    array_to_json json_array_elements json_array_elements_text json_array_length json_build_array
    json_build_object json_each json_each_text json_extract_path json_extract_path_text json_object
    json_object_keys json_populate_record json_populate_recordset json_strip_nulls json_to_record
    json_to_recordset json_typeof jsonb_array_elements jsonb_array_elements_text jsonb_array_length
    jsonb_build_array jsonb_build_object jsonb_concat jsonb_contains jsonb_delete jsonb_each jsonb_each_text
    jsonb_exists jsonb_exists_all jsonb_exists_any jsonb_extract_path jsonb_extract_path_text jsonb_insert
    jsonb_object jsonb_object_keys jsonb_path_exists jsonb_path_exists_tz jsonb_path_match jsonb_path_match_tz
    jsonb_path_query jsonb_path_query_array jsonb_path_query_array_tz jsonb_path_query_first
    jsonb_path_query_first_tz jsonb_path_query_tz jsonb_populate_record jsonb_populate_recordset jsonb_pretty
    jsonb_set jsonb_set_lax jsonb_strip_nulls jsonb_to_record jsonb_to_recordset jsonb_typeof row_to_json
    to_json to_jsonb
"""
_SEARCH = """
    array_to_tsvector numnode phraseto_tsquery plainto_tsquery querytree setweight strip to_tsquery to_tsvector
    ts_delete ts_filter ts_headline ts_rank ts_rank_cd tsquery_phrase tsvector_to_array websearch_to_tsquery
"""
HARMLESS = frozenset(f"{_AGGREGATES}{_NUMBERS}{_TEXTS}{_TIMES}{_COMPOSITES}{_DOCUMENTS}{_SEARCH}".split())
