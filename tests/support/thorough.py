"""The tests that `make test` leaves out, and the share of cases that it draws.

`make thorough` runs all tests with all cases (GPTAILOR_THOROUGH).
"""

import os
from collections.abc import Callable, Container, Hashable, Iterable, Sequence
from typing import TypeVar

Case = TypeVar("Case")

THOROUGH = "GPTAILOR_THOROUGH" in os.environ

LEFT_OUT = {
    "architecture/test_suite.py": [
        "test_a_test_that_hangs_ends_with_the_stacks_of_all_threads",
    ],
    "evaluation/test_trial.py": [
        "test_a_bounded_memory_changes_no_score",
        "test_embeddings_heads_and_layers_of_past_trials_are_let_go",
    ],
    "searching/test_recipes.py": [
        "test_more_trials_keep_the_best_recipe",
    ],
    "end_to_end/test_vocabulary.py": [
        "test_one_space_has_every_cut_of_a_mixture",
    ],
    "plugins/cluster/test_launched.py": [
        "test_two_processes_learn_as_one_does_with_the_same_steps",
    ],
    "output/gguf/test_file.py": [
        "test_a_full_disk_leaves_nothing",
    ],
    "checkpoint/formats/gguf/test_reader.py": [
        "test_the_library_is_needed_for_quantised_tensors_alone",
    ],
    "checks/test_sizes.py": [
        "test_an_oversized_plan_is_one_error[layers of a long stack]",
        "test_an_oversized_plan_is_one_error[layers of an endless stack]",
        "test_an_oversized_plan_is_one_error[layers of statements]",
        "test_an_oversized_plan_is_one_error[numbers with names]",
    ],
    "end_to_end/test_second_device.py": [
        "test_halves_learn_on_a_card",
    ],
    "end_to_end/test_api.py": [
        "test_no_module_replaces_a_function_of_the_package",
    ],
    "end_to_end/test_benchmarks.py": [
        "test_a_written_model_has_the_tensors_of_its_shape",
    ],
    "end_to_end/test_chain.py": [
        "test_a_plan_on_a_fitted_plan_is_the_plan_on_its_folder[biases]",
        "test_a_plan_on_a_fitted_plan_is_the_plan_on_its_folder[heal]",
        "test_a_plan_on_a_fitted_plan_is_the_plan_on_its_folder[vocabulary and heal]",
        "test_a_process_that_is_killed_in_the_second_step_resumes_there",
        "test_bounded_memory_gives_the_folders_output",
    ],
    "end_to_end/test_cli.py": [
        "test_an_interrupt_leaves_nothing",
    ],
    "end_to_end/test_experts_compile.py": [
        "test_a_search_with_a_fixed_number_of_experts",
    ],
    "end_to_end/test_heal_compile.py": [
        "test_a_killed_process_ends_all_with_one_message",
        "test_two_processes_and_a_resumed_one_give_the_same_bytes",
    ],
    "end_to_end/test_killed.py": [
        "test_a_disk_that_fills_up_during_an_update",
        "test_a_disk_that_fills_up_in_the_middle",
        "test_a_kill_from_outside_at_any_time",
        "test_a_kill_while_an_old_output_is_replaced_loses_neither",
        "test_a_kill_while_tensors_are_merged_leaves_no_model",
        "test_a_run_that_ends_while_another_is_at_work",
        "test_any_change_of_the_file_system_may_fail",
    ],
    "end_to_end/test_llama_cpp.py": [
        "test_a_cut_of_smollm2_writes_the_same_text",
    ],
    "end_to_end/test_lock.py": [
        "test_a_lock_holds_a_model_of_the_hub_at_its_commit",
        "test_every_process_makes_the_same_lock",
    ],
    "end_to_end/test_same_bytes.py": [
        "test_processes_and_threads_change_no_byte",
        "test_shards_of_the_sources_change_no_byte",
        "test_the_number_of_threads_is_an_option",
    ],
    "end_to_end/test_scale.py": [
        "test_a_large_plan_needs_its_headers_and_little_memory",
    ],
    "end_to_end/test_search_benchmark.py": [
        "test_a_race_stops_a_surely_worse_plan",
    ],
    "end_to_end/test_search_command.py": [
        "test_a_full_disk_is_one_message_and_the_same_command_resumes",
        "test_a_loss_has_its_own_unit_where_it_has_no_share",
        "test_a_text_that_is_too_short_fails_the_finalists_alone",
        "test_control_c_keeps_everything_and_the_same_command_resumes",
        "test_control_c_while_the_best_plan_is_locked_keeps_everything",
        "test_finalists_are_healed_once_and_have_the_scores_of_their_plans",
        "test_starts_of_named_coefficients_have_each_model_alone_and_bounds_are_reported",
        "test_one_search_gives_the_curve_of_quality_over_size",
        "test_several_objectives_have_a_front",
        "test_the_printed_eval_command_has_the_dtype_of_the_search",
    ],
    "end_to_end/test_search_killed.py": [
        "test_killed_at_random_moments_it_ends_with_the_same_study",
    ],
    "end_to_end/test_search_requirements.py": [
        "test_a_found_plan_keeps_the_expectations",
        "test_latency_is_an_objective_that_the_study_remembers",
        "test_texts_are_split_as_a_search_of_each_splits_them",
        "test_an_evaluation_is_reused_for_its_own_text_alone",
        "test_the_nearest_plan_is_reported_if_none_meets_the_requirement",
    ],
    "end_to_end/test_startup.py": [
        "test_a_merge_imports_numpy_alone",
    ],
    "evaluation/fits/bridge/test_bridge.py": [
        "test_two_processes_give_the_same_bytes",
    ],
    "evaluation/fits/test_fits.py": [
        "test_the_weights_of_a_fit_are_freed_before_the_next_fit[300000000]",
    ],
    "evaluation/fits/heal/test_heal.py": [
        "test_a_run_that_is_killed_between_two_teachers_resumes_to_the_same_bytes",
    ],
    "plugins/report/test_run_sections.py": [
        "test_five_hundred_trials_fit_a_page",
    ],
    "plugins/cluster/test_ray_workers.py": [
        "test_a_lost_worker_is_replaced_and_the_study_is_the_same",
    ],
    "plugins/teach/test_answers.py": [
        "test_a_run_that_is_killed_while_the_teacher_answers_resumes",
    ],
    "plugins/test_without_plugins.py": [
        "test_without_a_plugin_the_tests_of_the_core_pass",
    ],
    "plugins/adopt/test_adopt.py": [
        "test_a_draft_equals_the_released_family",
    ],
    "plugins/adopt/test_family_files.py": [
        "test_an_existing_file_is_replaced_only_by_force",
        "test_a_header_s_other_tensors_fail_the_proof",
    ],
    "plugins/lora/test_hub_models.py": [
        "test_an_adapter_is_extracted_of_models_on_the_hub",
    ],
    "program/test_run.py": [
        "test_another_process_makes_the_same_bytes",
    ],
    "searching/run/test_study.py": [
        "test_a_full_disk_is_one_message_and_loses_nothing",
    ],
    "searching/test_limits.py": [
        "test_rare_windows_are_fitted",
        "test_bounds_are_checked_for_many_genomes_together",
    ],
    "searching/test_racing.py": [
        "test_rivals_are_the_trials_known_at_the_request",
        "test_a_kill_while_the_base_is_noted_leaves_the_same_races",
        "test_a_search_that_was_killed_ends_with_the_same_study",
        "test_races_do_not_depend_on_the_speed_of_workers",
        "test_the_best_plan_was_scored_on_all_samples",
    ],
}
"""Tests that `make test` leaves out, by their file: each takes seconds, and another test covers its
code with one process, one size or one moment."""

ONE_IN = {
    "searching/strategies/test_strategies.py": {
        "test_a_strategy_keeps_the_contract": 2,
    },
    "output/gguf/test_file.py": {
        "test_blocks_of_weights_too_small_for_their_type_are_noted": 3,
        "test_quantised_matrices_are_those_of_llama_cpps_package": 3,
    },
    "plugins/adopt/test_family_files.py": {
        "test_an_invalid_file_is_named": 3,
    },
    "checks/test_sizes.py": {
        "test_an_oversized_plan_is_one_error": 3,
    },
    "output/gguf/test_weighted_file.py": {
        "test_each_matrix_of_a_layer_is_weighted_by_its_columns": 3,
    },
    "evaluation/fits/test_importance.py": {
        "test_columns_have_the_mean_squares_of_the_compiled_model": 6,
    },
    "checkpoint/families/test_families.py": {
        "test_a_configuration_agrees_with_its_older_form": 6,
        "test_a_part_of_another_model": 4,
        "test_a_scaled_hidden_state_folds_into_the_layers_after_it": 3,
        "test_all_layers_in_order_are_the_model_itself": 4,
        "test_every_tensor_has_a_place": 6,
        "test_a_model_with_cut_and_reordered_layers_equals_one_made_by_hand": 4,
        "test_lists_are_derived_as_transformers_does": 6,
        "test_a_bridge_changes_only_the_mlp_projection": 3,
    },
    "checkpoint/families/test_vision.py": {
        "": 6,
    },
    "checkpoint/formats/gguf/test_architectures.py": {
        "": 2,
    },
    "checkpoint/formats/gguf/test_norms_and_groups.py": {
        "": 6,
    },
    "checkpoint/test_hostile.py": {
        "test_a_hostile_file_takes_little_memory": 3,
        "test_sound_files_are_read_and_cut_ones_are_not": 3,
        "test_the_command_line_reports_a_hostile_folder_and_leaves_no_output": 48,
        "test_the_command_line_reports_a_hostile_file": 64,
    },
    "checks/test_texts.py": {
        "test_one_fault_hides_no_other": 3,
    },
    "end_to_end/test_benchmarks.py": {
        "test_both_tools_receive_the_same_plan": 3,
    },
    "end_to_end/test_compile.py": {
        "test_embedding_and_head_of_a_tied_model": 2,
    },
    "end_to_end/test_killed.py": {
        "test_a_limit_on_the_size_of_files": 3,
        "test_a_signal_ends_the_command_and_leaves_nothing_at_once": 4,
        "test_a_source_that_is_pulled_away": 4,
    },
    "end_to_end/test_light_install.py": {
        "test_a_command_runs_without_extras": 3,
    },
    "end_to_end/test_llama_cpp.py": {
        "test_a_quantised_file_computes_the_logits_of_its_weights": 6,
        "test_probabilities_are_those_of_the_folder_in_transformers": 5,
        "test_texts_become_the_same_tokens": 2,
    },
    "end_to_end/test_lock.py": {
        "test_a_changed_tensor_is_reported": 3,
    },
    "end_to_end/test_plans.py": {
        "test_a_plan_is_valid_with_models_of_its_depth": 12,
    },
    "end_to_end/test_scale.py": {
        "test_no_file_of_weights_is_mapped": 2,
    },
    "end_to_end/test_search_command.py": {
        "test_a_folder_of_another_search_is_refused": 3,
    },
    "end_to_end/test_second_device.py": {
        "test_a_card_gives_the_numbers_of_the_cpu": 6,
        "test_a_family_has_the_logits_of_the_cpu": 20,
        "test_a_mistake_in_the_package_is_found": 5,
    },
    "end_to_end/test_single_edits.py": {
        "test_one_edit_is_one_message_or_nothing": 3,
    },
    "end_to_end/test_startup.py": {
        "test_no_command_imports_what_it_does_not_need": 5,
    },
    "end_to_end/test_tokenizer.py": {
        "test_a_broken_tokenizer_is_a_fault": 5,
        "test_a_tokenizer_brings_its_embedding_rows": 3,
        "test_equal_tokens_that_are_split_otherwise_are_a_warning": 4,
        "test_rows_are_put_in_the_base_s_order": 3,
    },
    "end_to_end/test_vision.py": {
        "": 4,
        "test_a_stitched_model_reads_a_text_as_the_compiled_one": 8,
    },
    "evaluation/fits/bridge/test_bridge.py": {
        "test_a_fit_folded_into_weights_is_the_fit_at_run_time": 6,
        "test_every_family_is_bridged": 6,
        "test_the_explained_share_is_that_of_the_bridged_model": 6,
    },
    "evaluation/forward/test_evaluator.py": {
        "test_logits_are_those_of_the_models_own_forward": 4,
    },
    "evaluation/forward/test_stitched.py": {
        "test_the_numbers_of_the_compiled_folder": 3,
    },
    "evaluation/fits/heal/test_heal.py": {
        "test_each_family_heals_to_a_smaller_loss": 2,
    },
    "evaluation/fits/heal/test_learning.py": {
        "test_every_family_learns_by_its_gradient_and_is_folded_as_it_ran": 6,
        "test_the_gradient_in_bfloat16_is_nearly_the_same": 4,
        "test_the_weights_themselves_learn_by_their_gradient_and_are_folded": 2,
    },
    "evaluation/fits/heal/test_teacher.py": {
        "test_damaged_predictions_are_computed_again": 5,
    },
    "evaluation/fits/heal/test_train.py": {
        "test_a_damaged_state_is_discarded_and_gives_the_same_bytes": 4,
        "test_an_interrupted_run_resumes_to_the_same_bytes": 3,
    },
    "evaluation/live/test_layer_cache.py": {
        "test_streamed_layers_compute_the_same": 2,
    },
    "evaluation/live/test_stitch.py": {
        "test_a_live_model_equals_the_folder_in_every_family": 8,
    },
    "evaluation/test_chat_text.py": {
        "test_a_template_without_bounds_is_one_message": 5,
    },
    "evaluation/test_evaluate.py": {
        "test_speeds_of_a_model_and_its_base": 3,
    },
    "evaluation/fits/test_expert_chooser.py": {
        "test_dropping_unused_experts_changes_no_score": 4,
    },
    "evaluation/test_gguf_tokenizer.py": {
        "test_texts_become_llama_cpps_tokens": 5,
    },
    "evaluation/fits/test_healing_store.py": {
        "test_each_input_of_a_bridge_gives_another_bridge": 5,
        "test_each_input_of_the_result_gives_another_healing": 3,
    },
    "evaluation/fits/test_narrow.py": {
        "test_the_output_equals_a_fit_by_transformers_and_least_squares": 3,
        "test_neurons_that_give_zero_leave_without_a_trace": 6,
    },
    "lang/test_table.py": {
        "test_both_parsers_see_the_same": 3,
    },
    "methods/test_native.py": {
        "test_a_method_has_the_same_bytes": 2,
    },
    "plugins/report/test_report_command.py": {
        "test_invalid_arguments_are_reported_and_nothing_is_written": 3,
    },
    "plugins/teach/test_answers.py": {
        "test_the_undropped_plan_has_the_plans_chat_template": 2,
    },
    "plugins/adopt/test_adopt.py": {
        "test_branches_are_distinguished_where_the_release_does": 7,
    },
    "plugins/lora/test_extract.py": {
        "test_tensors_outside_the_adapter_are_reported_and_all_others_match": 2,
    },
    "program/test_load.py": {
        "test_a_tied_model_stays_tied_as_in_peft": 2,
        "test_an_adapter_is_merged_as_peft_does_it": 6,
    },
    "program/test_run.py": {
        "test_a_device_makes_the_same_bytes": 8,
        "test_chunks_and_threads_change_no_bit": 6,
        "test_memory_is_bounded_by_chunks": 8,
    },
    "program/test_size.py": {
        "test_sizes_are_those_of_the_model": 4,
    },
    "program/test_unquantised.py": {
        "test_a_merge_is_that_of_the_numbers": 6,
        "test_every_computation_uses_dequantised_numbers": 2,
    },
    "searching/space/test_space.py": {
        "test_every_genome_gives_the_plan_of_its_active_genes": 3,
    },
    "searching/test_recipes.py": {
        "test_an_interrupted_search_resumes": 5,
    },
    "searching/test_search.py": {
        "test_a_search_killed_repeatedly_ends_with_the_same_study": 3,
        "test_a_killed_search_with_several_workers_resumes": 2,
    },
    "searching/test_starts.py": {
        "test_all_starts_together_cost_little": 3,
        "test_greedy_removal_costs_four_evaluations_at_most": 4,
        "test_starts_are_genomes_of_any_space": 3,
        "test_a_small_budget_still_tries_the_best_window_and_removal": 4,
    },
}
"""Tests of many cases, by their file, and how many of the first cases `make test` runs.

An empty name stands for all other tests of the file.
"""

PAGES = {
    "checkpoint/test_hub.py", "end_to_end/test_blocks.py", "end_to_end/test_cookbook.py",
    "end_to_end/test_docs.py", "end_to_end/test_faults.py", "end_to_end/test_howto.py",
    "end_to_end/test_light_install.py", "end_to_end/test_packaging.py",
    "end_to_end/test_tutorial.py", "plugins/cluster/test_cluster_docs.py",
    "plugins/lora/test_hub_models.py", "plugins/publish/test_publish.py",
    "plugins/report/test_page_in_browser.py",
}  # fmt: skip
"""Files of tests of the documentation, pages, services and packaging: `make test-pages`."""


def is_left_out(file: str, name: str, number: int) -> bool:
    """Return whether `make test` leaves out the case of that number of a test's cases.

    `file` is relative to this folder. `name` has the case's own name in brackets.
    """
    test = name.partition("[")[0]
    if {name, test} & {*LEFT_OUT.get(file, ())}:
        return True
    steps = ONE_IN.get(file, {})
    return number % steps.get(test, steps.get("", 1)) != 0


def drawn(count: int) -> int:
    """Return how many of this many examples Hypothesis draws."""
    return count if THOROUGH else max(8, count // 5)


def one_of_each(
    cases: Iterable[Case], kind: Callable[[Case], Hashable], besides: Container[Case] = ()
) -> list[Case]:
    """Return the first case of each kind, and those `besides`, where code branches on kinds."""
    cases, kinds = list(cases), dict[Hashable, Case]()
    for case in cases:
        kinds.setdefault(kind(case), case)
    firsts = set(kinds.values())
    return cases if THOROUGH else [case for case in cases if case in firsts or case in besides]


def moments(seen: Sequence[str]) -> list[int]:
    """At which of its moments, `seen`, a run is disturbed: some, and all of the last ones.

    Each renaming and the moment after it are among them, wherever they stand.
    """
    count = len(seen)
    renaming = [n for n, name in enumerate(seen) if name == "os.rename"]
    last = range(max(0, count - 8), count + 1)
    chosen = {*range(0, count, 12), *last, *renaming, *(n + 1 for n in renaming)}
    return list(range(count + 1)) if THOROUGH else sorted(chosen)
