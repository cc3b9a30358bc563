// EXPECT_ERROR(statement, code, parts...): the statement throws an rmoe::Error of this code whose message, with its
// help, contains every part.
#pragma once

#include <initializer_list>
#include <string>

#include <gtest/gtest.h>

#include "rmoe/base/error.h"

#define EXPECT_ERROR(statement, exit_code, ...)                                                           \
  do {                                                                                                    \
    bool rmoe_thrown = false;                                                                             \
    try {                                                                                                 \
      statement;                                                                                          \
    } catch (const ::rmoe::Error& rmoe_error) {                                                           \
      rmoe_thrown = true;                                                                                 \
      EXPECT_EQ(rmoe_error.code(), exit_code) << rmoe_error.message();                                    \
      const std::string rmoe_text = rmoe_error.message() + "\n" + rmoe_error.help();                      \
      EXPECT_EQ(rmoe_error.message().find('\n'), std::string::npos) << rmoe_error.message();              \
      for (const char* rmoe_part : {__VA_ARGS__}) {                                                       \
        EXPECT_NE(rmoe_text.find(rmoe_part), std::string::npos) << rmoe_text << "\nlacks: " << rmoe_part; \
      }                                                                                                   \
    }                                                                                                     \
    EXPECT_TRUE(rmoe_thrown) << #statement << " did not throw";                                           \
  } while (false)
