// Safetensors files, good and bad, and what a reader has to say about each.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace rmoe::io {

struct SafetensorsCase {
  std::string name;
  std::string bytes;
  bool accepted = false;          // by us
  bool package_accepted = false;  // by the safetensors package, version 0.8.0
};

// A file from its parts; `length` is the header's length as the file states it.
inline std::string safetensors_bytes(const std::string& header, const std::string& data, uint64_t length) {
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out + header + data;
}
inline std::string safetensors_bytes(const std::string& header, const std::string& data) {
  return safetensors_bytes(header, data, header.size());
}

inline std::vector<SafetensorsCase> safetensors_corpus() {
  std::vector<SafetensorsCase> cases;
  auto add = [&](std::string name, std::string bytes, bool accepted, bool package_accepted) {
    cases.push_back({std::move(name), std::move(bytes), accepted, package_accepted});
  };
  auto good = [&](std::string name, const std::string& header, const std::string& data) {
    add(std::move(name), safetensors_bytes(header, data), true, true);
  };
  auto bad = [&](std::string name, const std::string& header, const std::string& data) {
    add(std::move(name), safetensors_bytes(header, data), false, false);
  };
  auto stricter = [&](std::string name, const std::string& header, const std::string& data) {
    add(std::move(name), safetensors_bytes(header, data), false, true);
  };
  using namespace std::string_literals;
  std::string d4(4, 'd');
  // One tensor of given fields, or one F32 scalar with something more in its description or beside it.
  auto tensor = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return "{\"a\":{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}}";
  };
  auto f32 = [&](const std::string& shape, const std::string& offsets) { return tensor("\"F32\"", shape, offsets); };
  auto inside = [](const std::string& more) {
    return "{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]" + more + "}}";
  };
  auto beside = [](const std::string& more) {
    return "{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}" + more + "}";
  };
  auto named = [](const std::string& name) {
    return "{\"" + name + "\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}";
  };
  auto entry = [](const std::string& name, const std::string& dtype, const std::string& shape, int begin, int end) {
    return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":[" +
           std::to_string(begin) + "," + std::to_string(end) + "]}";
  };
  auto nested = [](int levels) { return std::string(size_t(levels), '[') + std::string(size_t(levels), ']'); };

  // The frame.
  add("empty file", "", false, false);
  add("7 bytes", "\2\0\0\0\0\0\0"s, false, false);
  add("only a length of 0", safetensors_bytes("", ""), false, false);
  add("length one past the end", safetensors_bytes("{}", "", 3), false, false);
  add("length one short", safetensors_bytes("{}", "", 1), false, false);
  add("length far past the end", safetensors_bytes("{}", "", 99'999'999), false, false);
  add("length at the limit", safetensors_bytes("{}", "", 100'000'000), false, false);
  add("length over the limit", safetensors_bytes("{}", "", 100'000'001), false, false);
  add("length 2^31", safetensors_bytes("{}", "", uint64_t{1} << 31), false, false);
  add("length 2^32 + 2", safetensors_bytes("{}", "", (uint64_t{1} << 32) + 2), false, false);
  add("length 2^63", safetensors_bytes("{}", "", uint64_t{1} << 63), false, false);
  add("length 2^64 - 1", safetensors_bytes("{}", "", ~uint64_t{0}), false, false);
  add("length that wraps to the end", safetensors_bytes("{}", "", ~uint64_t{0} - 5), false, false);
  good("no tensors", "{}", "");
  bad("no tensors but data", "{}", "x");
  bad("data missing", inside(""), "");
  bad("data one byte short", inside(""), "ddd");
  bad("data one byte long", inside(""), "ddddd");

  // JSON.
  good("spaces before", "  " + inside(""), d4);
  good("line feed before", "\n" + inside(""), d4);
  good("spaces after", inside("") + "     ", d4);
  good("tab and line feed after", inside("") + "\t\r\n", d4);
  bad("only spaces", "        ", "");
  bad("NUL after", inside("") + "\0\0"s, d4);
  bad("NUL inside", "{\0}"s, "");
  bad("letters after", inside("") + "x", d4);
  bad("second object after", inside("") + "{}", d4);
  bad("byte order mark", "\xef\xbb\xbf" + inside(""), d4);
  bad("UTF-16", "{\0}\0"s, "");
  bad("top level list", "[]", "");
  bad("top level null", "null", "");
  bad("top level text", "\"a\"", "");
  bad("top level number", "1", "");
  bad("unclosed", "{", "");
  bad("unclosed tensor", "{\"a\":{\"dtype\":\"F32\"", "");
  bad("unclosed text", "{\"a", "");
  bad("comment", "{/* */}", "");
  bad("line comment", "{}//", "");
  bad("single quotes", "{'a':{}}", "");
  bad("bare key", "{a:{}}", "");
  bad("trailing comma", beside(","), d4);
  bad("comma in shape", f32("[1,]", "[0,4]"), d4);
  bad("leading zero", f32("[01]", "[0,4]"), d4);
  bad("plus sign", f32("[+1]", "[0,4]"), d4);
  bad("hexadecimal", f32("[0x1]", "[0,4]"), d4);
  bad("NaN", inside(",\"q\":NaN"), d4);
  bad("number beyond double", inside(",\"q\":1e999"), d4);
  good("integer beyond 64 bits where it is ignored", inside(",\"q\":99999999999999999999999"), d4);
  good("escaped keys", "{\"a\":{\"d\\u0074ype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", d4);
  bad("unknown escape", named("\\x"), d4);
  good("nested as deep as allowed", inside(",\"q\":" + nested(125)), d4);
  bad("nested one deeper", inside(",\"q\":" + nested(126)), d4);
  bad("nested a million deep", inside(",\"q\":" + nested(1'000'000)), d4);
  bad("a million open lists", inside(",\"q\":" + std::string(1'000'000, '[')), d4);
  bad(
      "objects opened without end",
      [] {
        std::string out;
        for (int i = 0; i < 100'000; ++i) out += "{\"a\":";
        return out;
      }(),
      "");

  // Names.
  good("empty name", named(""), d4);
  good("name with NUL", named("\\u0000"), d4);
  good("name in UTF-8", named("\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"), d4);
  good("name by a surrogate pair", named("\\ud83d\\ude00"), d4);
  good("long name", named(std::string(10'000, 'n')), d4);
  good("name with slashes and quotes", named("../a/\\\"b\\\\"), d4);
  bad("lone high surrogate", named("\\ud800"), d4);
  bad("lone low surrogate", named("\\udc00"), d4);
  bad("invalid UTF-8", named("\xff"), d4);
  bad("cut UTF-8", named("\xe2\x82"), d4);
  bad("overlong UTF-8", named("\xc0\xaf"), d4);
  bad("surrogate in UTF-8", named("\xed\xa0\x80"), d4);
  bad("UTF-8 beyond Unicode", named("\xf4\x90\x80\x80"), d4);
  bad("control character in a name", named("\x01"), d4);
  bad("line feed in a name", named("\n"), d4);
  bad("invalid UTF-8 between tokens", beside("\xa0"), d4);

  // A tensor's description.
  good("unknown keys", inside(",\"q\":[1,{\"z\":null,\"dtype\":3}],\"r\":{},\"s\":true"), d4);
  good("unknown key first", "{\"a\":{\"q\":{\"shape\":[[]]},\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}",
       d4);
  good("any order of keys", "{\"a\":{\"data_offsets\":[0,4],\"shape\":[],\"dtype\":\"F32\"}}", d4);
  bad("no dtype", "{\"a\":{\"shape\":[],\"data_offsets\":[0,4]}}", d4);
  bad("no shape", "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", d4);
  bad("no data_offsets", "{\"a\":{\"dtype\":\"F32\",\"shape\":[]}}", d4);
  bad("empty description", "{\"a\":{}}", "");
  bad("description null", "{\"a\":null}", "");
  bad("description a number", beside(",\"b\":1"), d4);
  bad("description a text", beside(",\"b\":\"F32\""), d4);
  stricter("description a list", "{\"a\":[\"F32\",[],[0,4]]}", d4);
  bad("unknown dtype", tensor("\"F31\"", "[]", "[0,4]"), d4);
  bad("dtype in lower case", tensor("\"f32\"", "[]", "[0,4]"), d4);
  bad("empty dtype", tensor("\"\"", "[]", "[0,4]"), d4);
  bad("dtype null", tensor("null", "[]", "[0,4]"), d4);
  bad("dtype a number", tensor("32", "[]", "[0,4]"), d4);
  bad("dtype a list", tensor("[\"F32\"]", "[]", "[0,4]"), d4);
  stricter("dtype an object", tensor("{\"F32\":null}", "[]", "[0,4]"), d4);
  bad("shape null", f32("null", "[0,4]"), d4);
  bad("shape a number", f32("1", "[0,4]"), d4);
  bad("shape an object", f32("{}", "[0,4]"), d4);
  bad("shape of lists", f32("[[1]]", "[0,4]"), d4);
  bad("shape with a text", f32("[\"1\"]", "[0,4]"), d4);
  bad("shape with null", f32("[null]", "[0,4]"), d4);
  bad("shape with true", f32("[true]", "[0,4]"), d4);
  bad("negative size", f32("[-1]", "[0,4]"), d4);
  bad("two negative sizes", f32("[-1,-1]", "[0,4]"), d4);
  bad("minus zero", f32("[-0]", "[0,0]"), "");
  bad("fraction", f32("[0.5]", "[0,2]"), "dd");
  bad("whole fraction", f32("[1.0]", "[0,4]"), d4);
  bad("exponent", f32("[1e0]", "[0,4]"), d4);
  bad("offsets of one number", f32("[]", "[0]"), d4);
  bad("offsets of three numbers", f32("[]", "[0,4,4]"), d4);
  bad("offsets empty", f32("[]", "[]"), d4);
  bad("offsets a text", f32("[]", "\"0,4\""), d4);
  bad("offsets an object", f32("[]", "{\"begin\":0,\"end\":4}"), d4);
  bad("negative offset", f32("[]", "[-4,0]"), d4);
  bad("fractional offset", f32("[]", "[0.0,4]"), d4);
  bad("offset beyond 64 bits", f32("[]", "[0,18446744073709551620]"), d4);

  // Duplicates.
  bad("duplicate dtype", "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", d4);
  bad("duplicate shape", inside(",\"shape\":[]"), d4);
  bad("duplicate data_offsets", inside(",\"data_offsets\":[0,4]"), d4);
  stricter("duplicate tensor, equal", "{" + entry("a", "F32", "[]", 0, 4) + "," + entry("a", "F32", "[]", 0, 4) + "}",
           d4);
  stricter("duplicate tensor, empty", "{" + entry("a", "F32", "[0]", 0, 0) + "," + entry("a", "F32", "[]", 0, 4) + "}",
           d4);
  bad("duplicate tensor, both with data",
      "{" + entry("a", "F32", "[]", 0, 4) + "," + entry("a", "F32", "[]", 4, 8) + "}", d4 + d4);
  stricter("duplicate tensor by an escape",
           "{" + entry("a", "F32", "[0]", 0, 0) + "," + entry("\\u0061", "F32", "[]", 0, 4) + "}", d4);
  bad("duplicate __metadata__", beside(",\"__metadata__\":{},\"__metadata__\":{}"), d4);
  stricter("duplicate metadata key", beside(",\"__metadata__\":{\"x\":\"1\",\"x\":\"2\"}"), d4);

  // Metadata.
  good("metadata", beside(",\"__metadata__\":{\"format\":\"pt\",\"\":\"\"}"), d4);
  good("metadata first", "{\"__metadata__\":{\"x\":\"y\"}," + entry("a", "F32", "[]", 0, 4) + "}", d4);
  good("metadata alone", "{\"__metadata__\":{\"x\":\"y\"}}", "");
  good("metadata empty", beside(",\"__metadata__\":{}"), d4);
  good("metadata null", beside(",\"__metadata__\":null"), d4);
  good("metadata by an escape", beside(",\"__meta\\u0064ata__\":{\"x\":\"y\"}"), d4);
  bad("metadata with a number", beside(",\"__metadata__\":{\"x\":1}"), d4);
  bad("metadata with null", beside(",\"__metadata__\":{\"x\":null}"), d4);
  bad("metadata with a list", beside(",\"__metadata__\":{\"x\":[]}"), d4);
  bad("metadata with an object", beside(",\"__metadata__\":{\"x\":{}}"), d4);
  bad("metadata a list", beside(",\"__metadata__\":[]"), d4);
  bad("metadata a text", beside(",\"__metadata__\":\"x\""), d4);
  bad("metadata like a tensor", "{" + entry("__metadata__", "F32", "[]", 0, 4) + "}", d4);

  // Sizes.
  bad("shape larger than the range", f32("[2]", "[0,4]"), d4);
  bad("shape smaller than the range", f32("[0]", "[0,4]"), d4);
  bad("dtype larger than the range", tensor("\"F64\"", "[]", "[0,4]"), d4);
  bad("dtype smaller than the range", tensor("\"F16\"", "[]", "[0,4]"), d4);
  good("scalar", f32("[]", "[0,4]"), d4);
  good("no elements", f32("[0]", "[0,0]"), "");
  good("no elements of a large shape", f32("[4611686018427387904,0]", "[0,0]"), "");
  good("rank 1000",
       f32(
           "[1" +
               [] {
                 std::string ones;
                 for (int i = 1; i < 1000; ++i) ones += ",1";
                 return ones;
               }() +
               "]",
           "[0,4]"),
       d4);
  bad("product overflows to the right size", f32("[4294967296,4294967296]", "[0,0]"), "");
  bad("product overflows before a zero", f32("[4294967296,4294967296,0]", "[0,0]"), "");
  bad("bytes overflow to the right size", f32("[4611686018427387904]", "[0,0]"), "");
  bad("bytes overflow by one element", f32("[4611686018427387905]", "[0,4]"), d4);
  bad("2^62 elements in 4 bytes", f32("[4611686018427387904]", "[0,4]"), d4);
  stricter("2^64 - 1 times 0", f32("[18446744073709551615,0]", "[0,0]"), "");
  stricter("0 times 2^63", f32("[0,9223372036854775808]", "[0,0]"), "");
  bad("2^64", f32("[18446744073709551616]", "[0,0]"), "");
  good("4-bit pairs", tensor("\"F4\"", "[2,4]", "[0,4]"), d4);
  bad("4-bit, odd", tensor("\"F4\"", "[7]", "[0,4]"), d4);
  bad("4-bit, odd, cut", tensor("\"F4\"", "[7]", "[0,3]"), "ddd");
  good("6-bit groups", tensor("\"F6_E3M2\"", "[4]", "[0,3]"), "ddd");
  bad("6-bit, broken group", tensor("\"F6_E2M3\"", "[5]", "[0,4]"), d4);
  good("BOOL that is neither 0 nor 1", tensor("\"BOOL\"", "[4]", "[0,4]"), d4);

  // Ranges.
  std::string d8(8, 'd');
  auto two = [&](int b1, int e1, int b2, int e2) {
    return "{" + entry("a", "U8", "[" + std::to_string(e1 - b1) + "]", b1, e1) + "," +
           entry("b", "U8", "[" + std::to_string(e2 - b2) + "]", b2, e2) + "}";
  };
  good("two tensors", two(0, 3, 3, 8), d8);
  good("two tensors in the other order", two(3, 8, 0, 3), d8);
  good("empty tensor at the front", two(0, 0, 0, 8), d8);
  good("empty tensor at the end", two(8, 8, 0, 8), d8);
  good("two empty tensors", two(0, 0, 0, 0), "");
  good("not aligned", "{" + entry("a", "U8", "[1]", 0, 1) + "," + entry("b", "F32", "[1]", 1, 5) + "}", "ddddd");
  bad("hole at the front", two(1, 3, 3, 8), d8);
  bad("hole between", two(0, 3, 4, 8), d8);
  bad("hole at the end", two(0, 3, 3, 7), d8);
  bad("overlap by one byte", two(0, 4, 3, 8), d8);
  bad("same range twice", two(0, 8, 0, 8), d8);
  bad("one inside the other", two(0, 8, 2, 4), d8);
  bad("empty tensor in the middle of another", two(2, 2, 0, 8), d8);
  bad("empty tensor past the end", two(9, 9, 0, 8), d8);
  bad("range past the end", two(0, 3, 3, 9), d8);
  bad("both past the end", two(8, 11, 11, 16), d8);
  bad("end before begin", "{" + entry("a", "U8", "[1]", 1, 0) + "}", "d");
  bad("end before begin, size wraps", "{" + entry("a", "U8", "[0]", 8, 0) + "}", d8);
  bad("offset of 2^63 - 1", f32("[]", "[9223372036854775803,9223372036854775807]"), d4);
  bad("offset of 2^64 - 1", f32("[]", "[18446744073709551611,18446744073709551615]"), d4);
  return cases;
}

}  // namespace rmoe::io
