#!/usr/bin/env bash
# The fork's matrix: what scripts.sh does with the baseline, with cross-attention and with feedback (recipes v1, v2).
# Run scripts.sh first: the last lines compare with its runs. Data and weights as there.
set -euo pipefail
cd "$(dirname "$0")"

train_test_compare() { # ending of the run folders, training set, test sets
    local ending=$1 source=$2
    shift 2
    python train_cross_attention.py --dataset "$source" --training_mode full_shot \
        --save_path "ckpt/cross_attention_$ending"
    for recipe in v1 v2; do
        python train_cross_attention_feedback.py --dataset "$source" --training_mode full_shot --recipe "$recipe" \
            --save_path "ckpt/feedback_${recipe}_$ending"
    done
    for dataset in "$@"; do
        for arm in cross_attention feedback_v1 feedback_v2; do
            python test.py --dataset "$dataset" --save_path "ckpt/${arm}_$ending"
        done
    done
    python compare.py --baseline "ckpt/baseline_$ending" --runs "cross=ckpt/cross_attention_$ending" \
        "feedback_v1=ckpt/feedback_v1_$ending" "feedback_v2=ckpt/feedback_v2_$ending" \
        --datasets "$@" --out "comparison_$ending"
}

train_test_compare visa VisA MVTec BTAD MPDD Brain Liver Retina Colon_clinicDB Colon_colonDB Colon_Kvasir Colon_cvc300
train_test_compare mvtec MVTec VisA
