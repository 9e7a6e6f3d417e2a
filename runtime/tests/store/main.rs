//! The store: one suite on SQLite and on PostgreSQL.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod billing;
mod cases;
mod catalogue;
mod faults;
mod fixture;
mod ledger;
mod months;
mod opening;
mod partition;
mod postgres;
mod quotas;
#[path = "../rig/mod.rs"]
mod rig;
mod rights;
mod sql;

/// Each case as a test of its own on each database.
macro_rules! on_both {
    ($cases:ident: $on_sqlite:ident, $on_postgres:ident; $($case:ident,)*) => {
        mod $on_sqlite {
            $(#[tokio::test]
            async fn $case() {
                crate::$cases::$case(crate::fixture::Fixture::sqlite().await).await;
            })*
        }
        mod $on_postgres {
            $(#[tokio::test]
            async fn $case() {
                crate::$cases::$case(crate::fixture::Fixture::postgres().await).await;
            })*
        }
    };
}

on_both! {
    cases: on_sqlite, on_postgres;
    built_in_plans_are_there,
    plans_are_made_edited_and_removed,
    an_edit_from_an_old_version_is_a_conflict,
    a_plan_in_use_stays,
    tenants_keep_every_field,
    tenant_numbers_are_dense_and_never_used_again,
    nonsense_is_refused_by_field,
    a_deleted_tenant_stays_and_stays_deleted,
    a_tenant_and_its_key_are_made_together_or_not_at_all,
    lists_go_on_after_a_key,
    keys_are_revoked_rotated_and_foreign_ones_unknown,
    last_use_is_written_in_batches_and_never_goes_back,
    prices_are_set_and_the_past_stays,
    the_log_tells_who_did_what,
    a_flipped_byte_of_the_log_is_named,
    rows_cut_from_the_log_are_missed,
    changes_are_told_in_the_order_of_commits,
    changes_at_once_wait_for_each_other,
    an_idempotency_key_is_taken_once,
    deliveries_are_taken_once_and_tried_again,
    a_second_opening_finds_everything,
    a_newer_schema_is_refused,
    windows_cannot_be_overspent,
    single_values_are_kept,
    a_plan_that_contradicts_a_tenant_is_refused,
    what_no_row_can_hold_is_refused_alike,
}

on_both! {
    ledger: ledger_on_sqlite, ledger_on_postgres;
    records_are_written_in_groups_and_verified,
    the_next_start_recovers_once,
    a_writer_whose_epoch_was_ended_acknowledges_nothing,
    a_request_is_never_settled_twice,
    a_row_that_does_not_add_up_is_not_written_and_ends_the_writer,
    an_epoch_that_its_engine_closed_has_nothing_to_recover,
    a_start_refuses_a_ledger_that_was_changed,
    a_days_sum_that_was_changed_is_found,
    what_is_in_the_ledger_stays,
    a_byte_flipped_in_the_store_is_found_and_named,
    of_five_hundred_at_once_exactly_ten_get_a_place,
    grants_in_rows_do_what_grants_in_memory_do,
}

on_both! {
    months: months_on_sqlite, months_on_postgres;
    months_are_closed_in_order_when_they_are_over,
    of_many_replicas_one_closes_a_month,
    a_late_bill_is_in_the_next_month_and_in_one_invoice,
    an_invoice_that_is_not_its_statement_is_found,
    rows_are_archived_after_their_export_was_checked,
    an_archive_that_broke_off_is_finished,
    only_what_an_archived_month_covers_can_be_removed,
    a_changed_row_of_a_closed_month_is_not_closed_and_is_found,
    heads_are_noted_once_a_day_and_at_an_epochs_end,
}

on_both! {
    quotas: quotas_on_sqlite, quotas_on_postgres;
    of_five_hundred_clients_ten_are_answered,
    three_replicas_let_in_as_many_as_there_is_room_for,
    windows_of_a_store_sum_to_device_time,
    a_quota_that_came_later_is_kept_in_the_store,
    a_refused_request_gives_its_count_back,
    many_reports_are_one_and_old_grants_are_forgotten,
}

on_both! {
    billing: billing_on_sqlite, billing_on_postgres;
    the_bill_of_a_closed_month_never_changes,
    usage_is_read_by_days_however_much_there_is,
    an_export_has_every_row_once,
    what_a_request_was_charged_is_found_by_its_id,
    an_event_reaches_those_who_want_it,
}
